"""What a network carries: clients in a closed loop, each sending its next request when the last one is answered.

As in production: real processes, TLS, HSMs, signed requests, signed answers of every gate, audit and fsync on; the
clients, every process of the network and every gate share this machine.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine

import msgspec

from appliance import eventloop
from appliance.api.batches import BatchState
from appliance.api.client import AsyncClient
from appliance.localnet import LocalNet
from appliance.localnet.process import cpu_seconds
from policies.errors import Unavailable
from policies.requests import Hash, HashBatch

WARM_UP_REQUESTS = 32
POOL_LOW, POOL_HIGH, POOL_BATCH = 5_000, 20_000, 10_000

Progress = Callable[[str], None]
Request = Callable[[AsyncClient, str], Coroutine[object, object, int]]


class LoadResult(msgspec.Struct, frozen=True):
    """`p50_ms`, `p99_ms`, `worst_ms`: of whole requests, as a client sees them. `hashes`: hashes in a request.
    `cpu_ms_per_signature`: user and system time by process, the clients' own among them."""

    signers: int
    tolerate: int
    clients: int
    hashes: int
    seconds: float
    requests: int
    signatures_per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    refills: int
    cpu_ms_per_signature: dict[str, float]


def run(
    signers: int, tolerate: int, clients: int, seconds: float, hashes: int, refill: bool, progress: Progress
) -> LoadResult:
    """Sign for so many `seconds`. `hashes`: 0 for single requests, else hashes in each batch. `refill`: start with
    pools so low that batches of 10,000 presignatures are made meanwhile. Raises `KeymootError`."""
    progress(f"setting up {signers} signers, each with its gate")
    pool = (POOL_HIGH, 2 * POOL_HIGH, POOL_BATCH) if refill else (POOL_LOW, POOL_HIGH, POOL_BATCH)
    with LocalNet(signers, tolerate, pool=pool) as network:
        network.wait_for_pool(POOL_BATCH if refill else POOL_HIGH)
        with network.client() as client:
            key_id = client.create_key("bench/load", "bench-key").id
        return eventloop.run(measure(network, key_id, clients, seconds, hashes, progress))


async def measure(
    network: LocalNet, key_id: str, clients: int, seconds: float, hashes: int, progress: Progress
) -> LoadResult:
    """See `run`, for a network whose pools are full."""
    request = _batches_of(hashes) if hashes else _single
    async with network.async_client() as client:
        progress("warming up")
        await _closed_loop(client, key_id, request, clients, lambda done: done < max(clients, WARM_UP_REQUESTS))
        progress(f"signing for {seconds:g} s, {clients} clients")
        cpu_before_s, batches_before = _cpu_s(network), _presignatures_made(network)
        own_before_s, started_s = time.process_time(), time.monotonic()
        latencies_s, signatures = await _closed_loop(
            client, key_id, request, clients, lambda _: time.monotonic() < started_s + seconds
        )
        wall_s = time.monotonic() - started_s
        own_s = time.process_time() - own_before_s
        cpu_s = {name: after - cpu_before_s[name] for name, after in _cpu_s(network).items()}
    latencies_s.sort()
    return LoadResult(
        signers=network.plan.signers,
        tolerate=network.plan.tolerate,
        clients=clients,
        hashes=max(hashes, 1),
        seconds=round(wall_s, 2),
        requests=len(latencies_s),
        signatures_per_s=round(signatures / wall_s, 1),
        p50_ms=_quantile_ms(latencies_s, 0.5),
        p99_ms=_quantile_ms(latencies_s, 0.99),
        worst_ms=_quantile_ms(latencies_s, 1.0),
        refills=_presignatures_made(network) - batches_before,
        cpu_ms_per_signature={
            name: round(used_s / signatures * 1000, 3) for name, used_s in {**cpu_s, "clients": own_s}.items()
        },
    )


async def _closed_loop(
    client: AsyncClient, key_id: str, request: Request, clients: int, more: Callable[[int], bool]
) -> tuple[list[float], int]:
    """Seconds that each request took, and signatures that came of them; `more(requests begun)` says when to end."""
    latencies_s: list[float] = []
    begun = signatures = 0

    async def work() -> None:
        nonlocal begun, signatures
        while more(begun):
            begun += 1
            started_s = time.perf_counter()
            made = await request(client, key_id)
            latencies_s.append(time.perf_counter() - started_s)
            signatures += made

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(work())
    return latencies_s, signatures


async def _single(client: AsyncClient, key_id: str) -> int:
    await client.sign(key_id, Hash("0x" + secrets.token_hex(32), f"bench-{secrets.token_hex(8)}"))
    return 1


def _batches_of(hashes: int) -> Request:
    async def request(client: AsyncClient, key_id: str) -> int:
        body = HashBatch(tuple("0x" + secrets.token_hex(32) for _ in range(hashes)), f"bench-{secrets.token_hex(8)}")
        ended = await client.sign_batch(key_id, body)
        if ended.status is not BatchState.SIGNED:
            raise Unavailable(f"a batch ended as {ended.status}", "see the coordinator's log")
        return hashes

    return request


def _cpu_s(network: LocalNet) -> dict[str, float]:
    """User and system time of each process and its children so far."""
    return {name: cpu_seconds(process.pid) for name, process in network.processes.items()}


def _presignatures_made(network: LocalNet) -> int:
    """Batches that the coordinator's log says were made so far."""
    return network.processes["coordinator"].log.read_text().count('"presigned"')


def _quantile_ms(ordered_s: list[float], quantile: float) -> float:
    place = min(int(len(ordered_s) * quantile), len(ordered_s) - 1)
    return round(ordered_s[place] * 1000, 2)
