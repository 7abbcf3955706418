"""Ten thousand connections that say nothing, at the API of a real coordinator, while signing goes on."""

from __future__ import annotations

import asyncio
import resource
import secrets
import ssl
import time
from collections.abc import Iterator

import pytest

from appliance.api.client import AsyncClient
from appliance.localnet import LocalNet
from policies.requests import Hash

ADDRESSES = 10
AT_ONCE = 100
FILES = 12_512
IDLE_TIMEOUT_S = 90
CLOSED_TIMEOUT_S = 150.0


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    made = LocalNet(pool=(400, 800, 400))
    try:
        made.write()
        config = made.root / "coordinator" / "coordinator.yaml"
        # Long enough for the last to come before the first is closed.
        limits = f"  limits:\n    idle_timeout_s: {IDLE_TIMEOUT_S}\n"
        config.write_text(config.read_text().replace("  clients: clients.yaml\n", "  clients: clients.yaml\n" + limits))
        made.start()
        made.wait_for_pool(200)
        yield made
    finally:
        made.close()


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as the test needs; the coordinator raises its own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"at most {hard} open files are allowed here: raise the hard limit to {FILES}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Idle(asyncio.Protocol):
    """Says nothing."""

    def __init__(self, left: list[int]) -> None:
        self._left = left

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._left.append(1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._left.pop()


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize(
    ("count", "tls"),
    [(2000, False), pytest.param(10_000, True, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
    ids=["2000 without a handshake", "10000 with one"],
)
async def test_signing_goes_on_beside_idle_connections_and_they_are_closed(
    net: LocalNet, count: int, tls: bool
) -> None:
    url, ca = net.api()
    context = ssl.create_default_context(cafile=ca) if tls else None
    loop, gate, there = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE), []

    async def connect(number: int) -> None:
        async with gate:
            await loop.create_connection(
                lambda: Idle(there),
                "127.0.0.1",
                int(url.rpartition(":")[2]),
                ssl=context,
                server_hostname="127.0.0.1" if tls else None,
                local_addr=(f"127.0.0.{2 + number % ADDRESSES}", 0),
            )

    async with net.async_client() as client:
        key = await client.create_key("test/idle", "idle-key")
        connecting = asyncio.gather(*(connect(number) for number in range(count)))
        while not connecting.done():
            await sign(client, key.id)
        await connecting
        if tls:
            assert len(there) == count
        for _ in range(10):
            await sign(client, key.id)
        deadline_s = time.monotonic() + CLOSED_TIMEOUT_S
        while tls and there:
            assert time.monotonic() < deadline_s, f"{len(there)} connections are still open"
            await sign(client, key.id)
            await asyncio.sleep(0.2)


async def sign(client: AsyncClient, key_id: str) -> None:
    """A signature, verified by the client."""
    await client.sign(key_id, Hash("0x" + secrets.token_hex(32), "idle-" + secrets.token_hex(8)))
