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

import msgspec

from appliance.api.client import AsyncClient
from appliance.localnet import LocalNet
from appliance.localnet.delay import DelayingProxy
from appliance.localnet.files import LOOPBACK, free_ports
from policies.errors import Unavailable
from policies.requests import Hash

BATCH = 10_000
SIGNATURES = 10
TIMEOUT_S = 120.0

Progress = Callable[[str], None]


class WanResult(msgspec.Struct, frozen=True):
    """Milliseconds, as the coordinator (presigning) and a client beside it (keys, signatures) see them.

    Presigning is a crossing for the nonces, half of one for the order, four for the rounds of values, one for the
    confirmation and half of one for the report. `one_…`: a batch of one; `batch_us_…`: a batch of 10,000, divided.
    """

    signers: int
    tolerate: int
    delay_ms: float
    crossing_ms: float
    one_presignature_ms: float
    one_presignature_crossings: float
    batch_us_per_presignature: float
    key_generation_ms: float
    signature_ms_median: float


def run(signers: int, tolerate: int, delay_ms: float, progress: Progress) -> WanResult:
    """Raises `KeymootError`."""
    crossing_ms = 2 * delay_ms
    one_ms, _ = _batch_ms(signers, tolerate, delay_ms, 1, progress)
    batch_ms, (key_ms, signature_ms) = _batch_ms(signers, tolerate, delay_ms, BATCH, progress)
    return WanResult(
        signers=signers,
        tolerate=tolerate,
        delay_ms=delay_ms,
        crossing_ms=crossing_ms,
        one_presignature_ms=round(one_ms, 1),
        one_presignature_crossings=round(one_ms / crossing_ms, 2),
        batch_us_per_presignature=round(batch_ms * 1000 / BATCH, 1),
        key_generation_ms=round(key_ms, 1),
        signature_ms_median=round(signature_ms, 1),
    )


def _batch_ms(
    signers: int, tolerate: int, delay_ms: float, batch: int, progress: Progress
) -> tuple[float, tuple[float, float]]:
    """How long the last batch took, and key generation and the median signature after it."""
    progress(f"{signers} signers at {delay_ms:g} ms, batches of {batch}")
    (port,) = free_ports(1)
    network = LocalNet(signers, tolerate, pool=(batch, batch, batch), coordinator_port=port)
    with ExitStack() as stack:
        stack.callback(network.close)
        network.write()
        stack.enter_context(DelayingProxy(LOOPBACK, port, network.signers_port, delay_ms / 1000))
        network.start()
        network.wait_for_pool(batch, TIMEOUT_S)
        batch_ms = _last_batch_ms(network)
        return batch_ms, asyncio.run(_sign(network)) if batch > SIGNATURES else (0.0, 0.0)


def _last_batch_ms(network: LocalNet) -> float:
    for line in reversed(network.processes["coordinator"].log.read_text().splitlines()):
        entry = json.loads(line)
        if entry.get("event") == "presigned":
            return float(entry["ms"])
    raise Unavailable("the coordinator's log names no batch", "run the measurement again")


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
