"""What a signature costs: the online step inside an enclave, and whole requests in a closed loop."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections.abc import Callable

import msgspec

from appliance.api.client import AsyncClient
from appliance.localnet import LocalNet
from appliance.localnet.status import enclave_status
from policies.errors import Unavailable
from policies.requests import Hash

Progress = Callable[[str], None]


class OnlineResult(msgspec.Struct, frozen=True):
    """`enclave_us`: the online step in an enclave, from the order to the share, HSM unsealing included, mean over
    all. The rest is of whole requests: signed by the client, three gates asked, audited, on disk, verified."""

    signers: int
    tolerate: int
    signatures: int
    concurrency: int
    enclave_us: float
    signatures_per_s: float
    latency_ms_median: float
    latency_ms_worst: float


def run(signers: int, tolerate: int, signatures: int, concurrency: int, progress: Progress) -> OnlineResult:
    """Sign `signatures` hashes, `concurrency` at a time, each signer with a signed gate. Raises `KeymootError`."""
    progress(f"setting up {signers} signers, each with its gate")
    low = min(signatures + concurrency, 8000)
    with LocalNet(signers, tolerate, pool=(low, low * 2, low)) as network:
        network.wait_for_pool(low)
        with network.client() as client:
            key_id = client.create_key("bench/online", "bench-key").id
        progress(f"signing {signatures} hashes, {concurrency} at a time")
        started_s = time.monotonic()
        latencies_s = asyncio.run(_sign_all(network, key_id, signatures, concurrency))
        wall_s = time.monotonic() - started_s
        enclave_us = _enclave_us(network)
    return OnlineResult(
        signers=signers,
        tolerate=tolerate,
        signatures=len(latencies_s),
        concurrency=concurrency,
        enclave_us=round(enclave_us, 1),
        signatures_per_s=round(len(latencies_s) / wall_s, 1),
        latency_ms_median=round(statistics.median(latencies_s) * 1000, 2),
        latency_ms_worst=round(max(latencies_s) * 1000, 2),
    )


async def _sign_all(network: LocalNet, key_id: str, signatures: int, concurrency: int) -> list[float]:
    """Seconds that each request took; `concurrency` workers in a closed loop."""
    left = iter(range(signatures))
    latencies_s: list[float] = []

    async def work(client: AsyncClient) -> None:
        for number in left:
            body = Hash("0x" + secrets.token_hex(32), f"bench-{number}")
            started_s = time.perf_counter()
            await client.sign(key_id, body)
            latencies_s.append(time.perf_counter() - started_s)

    async with network.async_client() as client, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work(client))
    return latencies_s


def _enclave_us(network: LocalNet) -> float:
    """Mean online step over all enclaves, from their own counters. Ends the signers, to ask in their place."""
    total_us = shares = 0
    for index in network.plan.indices:
        network.processes[f"signer-{index}"].stop()
        counters = enclave_status(network.socket(index)).counters
        total_us += counters.get("online_us_total", 0)
        shares += counters.get("shares_given", 0)
    if not shares:
        raise Unavailable("the enclaves counted no online step", "see the logs of the enclaves")
    return total_us / shares
