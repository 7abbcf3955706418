"""What one presignature costs one signer: CPU of its enclave and presign worker, and bytes it sends."""

from __future__ import annotations

import json
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import coincurve
import msgspec

from appliance.localnet import LocalNet
from appliance.localnet.files import COORDINATOR
from appliance.localnet.process import cpu_seconds
from policies.errors import Unavailable

GENERATOR_ROUNDS = 5000
FILL_TIMEOUT_S = 600.0
PROFILE_TIMEOUT_S = 300.0
POLL_S = 0.02
IDLE_POOL = (1, 1, 1)
# A run holds so many presignatures at least, in several batches where these are smaller, as CPU time is told in
# hundredths of a second; but only so many batches, as an enclave's pool holds 256.
LEAST_OF_A_RUN, MOST_BATCHES_OF_A_RUN = 2000, 16
CURVE = (1, 10, 100, 1000, 10_000)
# Of Katz and Urban, ePrint 2024/2011.
PUBLISHED_US = 1300.0
CURVE_RUNS = 3
PROFILED_BATCH = 2000
LOOPBACK_STATISTICS = Path("/sys/class/net/lo/statistics/tx_bytes")

Progress = Callable[[str], None]


class PresignResult(msgspec.Struct, frozen=True):
    """`us_per_presignature_per_signer`: user and system time of enclave and worker together, everything included, mean
    over the committee, median of `runs`; `published_…`: what the paper's authors publish. `bytes_…`: sent by a signer,
    TLS and TCP included. `batch_ms`: from order to report, median. `generator_multiplications`: the first figure in
    units of one of libsecp256k1's. `profile_us`: what one member computes, by step of the specification; the rest of
    the figure is frames, processes and Python."""

    signers: int
    tolerate: int
    batch: int
    runs: int
    us_per_presignature_per_signer: float
    us_of_each_run: tuple[float, ...]
    us_per_presignature_worst_signer: float
    published_us_per_presignature: float
    batch_ms: float
    generator_multiplication_us: float
    generator_multiplications: float
    bytes_per_presignature_per_signer: float
    profile_us: dict[str, float]


class CurvePoint(msgspec.Struct, frozen=True):
    """As in `PresignResult`, for one size of batch."""

    batch: int
    us_per_presignature_per_signer: float
    batch_ms: float


class CurveResult(msgspec.Struct, frozen=True):
    """What a presignature costs by the size of its batch."""

    signers: int
    tolerate: int
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class _Measured:
    """`us`: of each run; `worst_us`: of the signer with most, over all runs."""

    us: tuple[float, ...]
    worst_us: float
    batch_ms: float
    bytes_each: float


def run(signers: int, tolerate: int, batch: int, runs: int, progress: Progress) -> PresignResult:
    """Make `runs` batches on a fresh network, after a first one that does not count. Raises `KeymootError`."""
    progress("measuring a multiplication of the generator")
    generator_us = generator_multiplication_us()
    progress("measuring the steps of one member")
    profile_us = _profile(tolerate, min(batch, PROFILED_BATCH))
    progress(f"setting up {signers} signers")
    with LocalNet(signers, tolerate, gate=False, pool=IDLE_POOL) as network:
        network.wait_for_pool(1)
        measured = _measure(network, batch, runs, progress)
    us = statistics.median(measured.us)
    return PresignResult(
        signers=signers,
        tolerate=tolerate,
        batch=batch,
        runs=runs,
        us_per_presignature_per_signer=round(us, 2),
        us_of_each_run=tuple(round(each, 1) for each in measured.us),
        us_per_presignature_worst_signer=round(measured.worst_us, 2),
        published_us_per_presignature=PUBLISHED_US,
        batch_ms=round(measured.batch_ms, 1),
        generator_multiplication_us=round(generator_us, 2),
        generator_multiplications=round(us / generator_us, 2),
        bytes_per_presignature_per_signer=round(measured.bytes_each, 1),
        profile_us=profile_us,
    )


def curve(signers: int, tolerate: int, progress: Progress) -> CurveResult:
    """Batches of 1 to 10,000 on one network. Raises `KeymootError`."""
    progress(f"setting up {signers} signers")
    points = []
    with LocalNet(signers, tolerate, gate=False, pool=IDLE_POOL) as network:
        network.wait_for_pool(1)
        for batch in CURVE:
            measured = _measure(network, batch, CURVE_RUNS, progress)
            points.append(CurvePoint(batch, round(statistics.median(measured.us), 2), round(measured.batch_ms, 1)))
    return CurveResult(signers, tolerate, tuple(points))


def _measure(network: LocalNet, batch: int, runs: int, progress: Progress) -> _Measured:
    """The coordinator is started again with this size of batch: links, and a first batch, come before the first run."""
    progress(f"making batches of {batch}")
    before = network.pools()
    each = batch * min(-(-LEAST_OF_A_RUN // batch), MOST_BATCHES_OF_A_RUN)
    level = max(before.values()) + batch + runs * each
    network.configure_pool((level, level, batch))
    network.restart(COORDINATOR)
    base, committees = sum(before.values()), len(before)
    samples = [_sample(network, base + (batch + number * each) * committees) for number in range(runs + 1)]
    us = [1e6 * (b.cpu_s - a.cpu_s) / _members(network, a, b) for a, b in pairwise(samples)]
    first, last = samples[0], samples[-1]
    made = {committee: count - first.pools.get(committee, 0) for committee, count in last.pools.items()}
    own = [sum(count for committee, count in made.items() if index in committee) for index in network.plan.indices]
    spent_s = [b - a for a, b in zip(first.cpu_each_s, last.cpu_each_s, strict=True)]
    return _Measured(
        us=tuple(us),
        worst_us=max(1e6 * seconds / count for seconds, count in zip(spent_s, own, strict=True) if count),
        batch_ms=_median_batch_ms(network, batch),
        # Every frame crosses loopback twice: to the coordinator and from it.
        bytes_each=(last.loopback_bytes - first.loopback_bytes) / 2 / _members(network, first, last),
    )


@dataclass(frozen=True)
class _Sample:
    """What is in the pools, and what it has cost so far."""

    pools: dict[tuple[int, ...], int]
    cpu_each_s: Sequence[float]
    loopback_bytes: int

    @property
    def made(self) -> int:
        return sum(self.pools.values())

    @property
    def cpu_s(self) -> float:
        return sum(self.cpu_each_s)


def _sample(network: LocalNet, made: int) -> _Sample:
    """As soon as so many presignatures are there. Raises `Unavailable`."""
    processes = [network.processes[f"enclave-{index}"].pid for index in network.plan.indices]
    deadline_s = time.monotonic() + FILL_TIMEOUT_S
    while sum((pools := network.pools()).values()) < made:
        if time.monotonic() > deadline_s:
            raise Unavailable(f"waited {FILL_TIMEOUT_S:.0f} s for {made} presignatures", "see the coordinator's log")
        time.sleep(POLL_S)
    return _Sample(pools, [cpu_seconds(pid) for pid in processes], loopback_bytes())


def _members(network: LocalNet, a: _Sample, b: _Sample) -> int:
    """Presignatures made between two samples, times the signers that made each."""
    return (b.made - a.made) * network.roster.committee_size


def _median_batch_ms(network: LocalNet, batch: int) -> float:
    entries = [json.loads(line) for line in network.processes[COORDINATOR].log.read_text().splitlines()]
    return statistics.median(float(e["ms"]) for e in entries if e["event"] == "presigned" and e["count"] == batch)


def _profile(tolerate: int, batch: int) -> dict[str, float]:
    """Raises `Unavailable`."""
    command = [sys.executable, "-I", "-m", "enclave.presign_profile"]
    command += ["--tolerate", str(tolerate), "--batch", str(batch)]
    try:
        # Our own interpreter, and numbers that were checked.
        done = subprocess.run(command, capture_output=True, check=True, timeout=PROFILE_TIMEOUT_S)  # noqa: S603
    except (subprocess.SubprocessError, OSError) as error:
        raise Unavailable(f"the profile could not be taken: {error}", "run the measurement again") from None
    return msgspec.json.decode(done.stdout, type=dict[str, float])


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
