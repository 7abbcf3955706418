"""What distance costs: every signer as far from the coordinator as `delay_ms`, each way.

A *crossing* goes from a signer through the coordinator to another signer: twice the delay.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec

from appliance.api.client import AsyncClient
from appliance.localnet import LocalNet
from appliance.localnet.delay import DelayingProxy
from appliance.localnet.files import COORDINATOR, LOOPBACK, free_ports
from policies.errors import Unavailable
from policies.requests import Hash

BATCH = 10_000
# Of Katz and Urban, ePrint 2024/2011, at 50 ms.
PUBLISHED_MS = 680.0
SINGLES = 8
SIGNATURES = 10
TIMEOUT_S = 120.0

Progress = Callable[[str], None]


class WanResult(msgspec.Struct, frozen=True):
    """Milliseconds. `one_presignature_…`: a batch of one, from a signer's first body to its pool, at its slowest
    signer, median of several: four rounds of values and the confirmation, a crossing each. `one_batch_ms`: the same as
    the coordinator sees it, half a crossing for the order before it and half for the report after it.
    `batch_us_…`: a batch of 10,000 from order to report, divided. Keys and signatures are a client's beside the
    coordinator; `signature_…`: median, two crossings and the gates.
    """

    signers: int
    tolerate: int
    delay_ms: float
    crossing_ms: float
    one_presignature_ms: float
    one_presignature_crossings: float
    published_one_presignature_ms: float
    one_batch_ms: float
    batch_us_per_presignature: float
    key_generation_ms: float
    signature_ms_median: float
    signature_crossings: float


@dataclass(frozen=True)
class _Measured:
    """Medians of the batches: at the slowest signer and at the coordinator; of a key, and of signatures."""

    protocol_ms: float
    batch_ms: float
    key_ms: float
    signature_ms: float


def run(signers: int, tolerate: int, delay_ms: float, progress: Progress) -> WanResult:
    """Raises `KeymootError`."""
    crossing_ms = 2 * delay_ms
    one = _measure(signers, tolerate, delay_ms, 1, progress)
    many = _measure(signers, tolerate, delay_ms, BATCH, progress)
    return WanResult(
        signers=signers,
        tolerate=tolerate,
        delay_ms=delay_ms,
        crossing_ms=crossing_ms,
        one_presignature_ms=round(one.protocol_ms, 1),
        one_presignature_crossings=round(one.protocol_ms / crossing_ms, 2),
        published_one_presignature_ms=PUBLISHED_MS,
        one_batch_ms=round(one.batch_ms, 1),
        batch_us_per_presignature=round(many.batch_ms * 1000 / BATCH, 1),
        key_generation_ms=round(one.key_ms, 1),
        signature_ms_median=round(one.signature_ms, 1),
        signature_crossings=round(one.signature_ms / crossing_ms, 2),
    )


def _measure(signers: int, tolerate: int, delay_ms: float, batch: int, progress: Progress) -> _Measured:
    """One network that makes batches of this size."""
    progress(f"{signers} signers at {delay_ms:g} ms, batches of {batch}")
    (port,) = free_ports(1)
    level = SIGNATURES + SINGLES if batch == 1 else batch
    network = LocalNet(signers, tolerate, pool=(level, level, batch), coordinator_port=port)
    with ExitStack() as stack:
        stack.callback(network.close)
        network.write()
        stack.enter_context(DelayingProxy(LOOPBACK, port, network.signers_port, delay_ms / 1000))
        network.start()
        network.wait_for_pool(level, TIMEOUT_S)
        key_ms, signature_ms = asyncio.run(_sign(network)) if batch == 1 else (0.0, 0.0)
        enclaves = [name for name in network.processes if name.startswith("enclave-")]
        slowest = max(_median_batch_ms(network, name, batch) for name in enclaves)
        return _Measured(slowest, _median_batch_ms(network, COORDINATOR, batch), key_ms, signature_ms)


def _median_batch_ms(network: LocalNet, process: str, batch: int) -> float:
    """Of the batches of this size in a process's log."""
    found = []
    for line in network.processes[process].log.read_text().splitlines():
        entry = json.loads(line)
        if entry.get("event") == "presigned" and entry["count"] == batch:
            found.append(float(entry["ms"]))
    if not found:
        raise Unavailable(f"the log of {process} names no batch", "run the measurement again")
    return statistics.median(found)


async def _sign(network: LocalNet) -> tuple[float, float]:
    async with network.async_client() as client:
        started_s = time.perf_counter()
        key = await client.create_key("bench/wan", "bench-key")
        key_ms = (time.perf_counter() - started_s) * 1000
        return key_ms, statistics.median([await _signature_ms(client, key.id) for _ in range(SIGNATURES)])


async def _signature_ms(client: AsyncClient, key_id: str) -> float:
    started_s = time.perf_counter()
    await client.sign(key_id, Hash("0x" + secrets.token_hex(32), f"bench-{secrets.token_hex(8)}"))
    return (time.perf_counter() - started_s) * 1000
