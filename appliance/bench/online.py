"""What a signature costs: the online step inside an enclave, and whole requests in a closed loop."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from appliance.api.client import AsyncClient
from appliance.enclave_status import enclave_status
from appliance.localnet import LocalNet
from policies.errors import Unavailable
from policies.requests import Hash

MOST_ALONE = 200
MAX_LOW = 8000
PHASE = "online_us|"

Progress = Callable[[str], None]


class OnlineResult(msgspec.Struct, frozen=True):
    """The online step in an enclave, from the order to the share, HSM unsealing included, means over all enclaves
    with one request at a time: `enclave_us` is its CPU time (all threads), `enclave_wall_us` also counts waiting
    for a core, which all processes of the network share here; `profile_us` is the latter by phase. The rest is of
    whole requests: signed by the client, every gate asked and its answer verified, audited, on disk, verified."""

    signers: int
    tolerate: int
    signatures: int
    concurrency: int
    enclave_us: float
    enclave_wall_us: float
    profile_us: dict[str, float]
    signatures_per_s: float
    latency_ms_median: float
    latency_ms_worst: float


def run(signers: int, tolerate: int, signatures: int, concurrency: int, progress: Progress) -> OnlineResult:
    """Sign hashes one at a time, then `signatures` of them `concurrency` at a time. Raises `KeymootError`."""
    progress(f"setting up {signers} signers, each with its gate")
    alone = min(signatures, MOST_ALONE)
    low = min(alone + signatures + concurrency, MAX_LOW)
    with LocalNet(signers, tolerate, pool=(low, low * 2, low)) as network:
        network.wait_for_pool(low * 2)
        with network.client() as client:
            key_id = client.create_key("bench/online", "bench-key").id
        progress(f"signing {alone} hashes, one at a time")
        asyncio.run(_sign_all(network, key_id, alone, 1))
        cpu_us, profile_us = _enclave_us(network)
        network.wait_for_pool(1)
        progress(f"signing {signatures} hashes, {concurrency} at a time")
        started_s = time.monotonic()
        latencies_s = asyncio.run(_sign_all(network, key_id, signatures, concurrency))
        wall_s = time.monotonic() - started_s
    return OnlineResult(
        signers=signers,
        tolerate=tolerate,
        signatures=len(latencies_s),
        concurrency=concurrency,
        enclave_us=round(cpu_us, 1),
        enclave_wall_us=round(sum(profile_us.values()), 1),
        profile_us={phase: round(took_us, 1) for phase, took_us in profile_us.items()},
        signatures_per_s=round(len(latencies_s) / wall_s, 1),
        latency_ms_median=round(statistics.median(latencies_s) * 1000, 2),
        latency_ms_worst=round(max(latencies_s) * 1000, 2),
    )


async def _sign_all(network: LocalNet, key_id: str, signatures: int, concurrency: int) -> list[float]:
    """Seconds that each request took; `concurrency` workers in a closed loop."""
    left = iter(range(signatures))
    latencies_s: list[float] = []

    async def work(client: AsyncClient) -> None:
        for _ in left:
            body = Hash("0x" + secrets.token_hex(32), f"bench-{secrets.token_hex(8)}")
            started_s = time.perf_counter()
            await client.sign(key_id, body)
            latencies_s.append(time.perf_counter() - started_s)

    async with network.async_client() as client, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work(client))
    return latencies_s


def _enclave_us(network: LocalNet) -> tuple[float, dict[str, float]]:
    """Mean CPU time of the online step, and its mean wall time by phase, from the enclaves' own counters. Meanwhile the
    signers are stopped, since an enclave speaks with one peer."""
    names = [f"signer-{index}" for index in network.plan.indices]
    for name in names:
        network.processes[name].stop()
    counted: Counter[str] = Counter()
    for index in network.plan.indices:
        counted.update(enclave_status(network.socket(index)).counters)
    for name in names:
        network.processes[name].start()
    shares = counted["shares_given"]
    if not shares:
        raise Unavailable("the enclaves counted no online step", "see the logs of the enclaves")
    by_phase = {name.removeprefix(PHASE): us / shares for name, us in counted.items() if name.startswith(PHASE)}
    return counted["online_cpu_us_total"] / shares, by_phase
