"""What one presignature costs one signer: CPU of its enclave and presign worker, and bytes it sends."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path

import coincurve
import msgspec

from appliance.localnet import LocalNet
from appliance.localnet.process import cpu_seconds

GENERATOR_ROUNDS = 5000
FILL_TIMEOUT_S = 600.0
IDLE_POOL = (1, 1, 1)
LOOPBACK_STATISTICS = Path("/sys/class/net/lo/statistics/tx_bytes")

Progress = Callable[[str], None]


class PresignResult(msgspec.Struct, frozen=True):
    """`us_per_presignature_per_signer`: user and system time of enclave and worker together, from the first
    frame to the pool, mean over the committee. `bytes_…`: sent by a signer, TLS and TCP included."""

    signers: int
    tolerate: int
    batch: int
    presignatures: int
    us_per_presignature_per_signer: float
    us_per_presignature_worst_signer: float
    wall_s: float
    generator_multiplication_us: float
    bytes_per_presignature_per_signer: float


def run(signers: int, tolerate: int, batch: int, progress: Progress) -> PresignResult:
    """Make one batch on a fresh network. Raises `KeymootError`.

    The network is set up, linked and has made a batch of one; then the coordinator is started again with the real
    batch size. So the figure holds three new handshakes, but neither PRSS setup nor the first imports.
    """
    progress("measuring a multiplication of the generator")
    generator_us = generator_multiplication_us()
    progress(f"setting up {signers} signers")
    with LocalNet(signers, tolerate, gate=False, pool=IDLE_POOL) as network:
        network.wait_for_pool(1)
        committees = network.pools()
        enclaves = [network.processes[f"enclave-{index}"].pid for index in network.plan.indices]
        network.configure_pool((2, batch + 1, batch))
        progress(f"making {batch} presignatures")
        bytes_before, cpu_before = loopback_bytes(), [cpu_seconds(pid) for pid in enclaves]
        started_s = time.monotonic()
        network.restart("coordinator")
        network.wait_for_pool(batch, FILL_TIMEOUT_S)
        wall_s = time.monotonic() - started_s
        cpu_s = [cpu_seconds(pid) - before for pid, before in zip(enclaves, cpu_before, strict=True)]
        sent = loopback_bytes() - bytes_before
        made = network.pools()
    count = sum(made.values()) - sum(committees.values())
    size = network.roster.committee_size
    members = count * size
    # A signer's own: presignatures of the committees it is in.
    own = {
        index: sum(number - committees.get(committee, 0) for committee, number in made.items() if index in committee)
        for index in network.plan.indices
    }
    worst = max(seconds / own[index] for index, seconds in enumerate(cpu_s, start=1) if own[index])
    return PresignResult(
        signers=signers,
        tolerate=tolerate,
        batch=batch,
        presignatures=count,
        us_per_presignature_per_signer=round(sum(cpu_s) * 1e6 / members, 2),
        us_per_presignature_worst_signer=round(worst * 1e6, 2),
        wall_s=round(wall_s, 3),
        generator_multiplication_us=round(generator_us, 2),
        # Every frame crosses loopback twice: to the coordinator and from it.
        bytes_per_presignature_per_signer=round(sent / 2 / members, 1),
    )


def generator_multiplication_us() -> float:
    """Mean time of one multiplication of the generator in libsecp256k1, for scale."""
    scalars = [secrets.token_bytes(32) for _ in range(GENERATOR_ROUNDS)]
    started_s = time.perf_counter()
    for scalar in scalars:
        coincurve.PublicKey.from_valid_secret(scalar)
    return (time.perf_counter() - started_s) * 1e6 / GENERATOR_ROUNDS


def loopback_bytes() -> int:
    """Bytes that have crossed this machine's loopback interface."""
    return int(LOOPBACK_STATISTICS.read_text())
