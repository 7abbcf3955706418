"""Medians of the HSM's calls on a throw-away SoftHSM token: `python -m tests.bench.hsm`.

Prints microseconds for each profile, direct and through the HSM thread. The unseal is in the signing path.
"""

from __future__ import annotations

import os
import select
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from enclave.hsm import Hsm, HsmConfig, HsmThread, RecordContext, open_hsm, provision
from enclave.hsm.keys import ProfileName
from tests.fakes.softhsm import SoftToken

ROUNDS = 2000
SHARE_BYTES = 200
CONTEXT = RecordContext("bench", 1, "key", "key_" + "0" * 32, epoch=1, version=1)


def median_us(call: Callable[[], object]) -> float:
    """The median of `ROUNDS` calls, in microseconds."""
    times: list[int] = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def measure(config: HsmConfig, profile: ProfileName) -> dict[str, float]:
    """Provision in `profile`, then time every call."""
    config = msgspec.structs.replace(config, sealing_key_label=f"bench-{profile}")
    provision(config, profile)
    hsm = open_hsm(config, "bench", 1)
    sealed, share, digest = (
        hsm.seal(CONTEXT, os.urandom(SHARE_BYTES)),
        os.urandom(SHARE_BYTES),
        os.urandom(32),
    )
    numbers = {
        "seal": median_us(lambda: hsm.seal(CONTEXT, share)),
        "unseal": median_us(lambda: hsm.unseal(CONTEXT, sealed).wipe()),
        "sign": median_us(lambda: hsm.sign(digest)),
        "healthy": median_us(hsm.healthy),
    }
    hsm.close()
    thread = HsmThread(lambda: open_hsm(config, "bench", 1))
    thread.wait_ready(10)
    numbers["unseal, by thread"] = median_us(lambda: _through(thread, lambda hsm: hsm.unseal(CONTEXT, sealed).wipe()))
    thread.close()
    start = time.perf_counter_ns()
    open_hsm(config, "bench", 1).close()
    numbers["open and close"] = (time.perf_counter_ns() - start) / 1000
    return numbers


def _through(thread: HsmThread, job: Callable[[Hsm], None]) -> None:
    results: list[object] = []
    thread.submit(job, results.append)
    while not results:
        select.select([thread], [], [])
        thread.drain()


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as directory:
        token = SoftToken(Path(directory) / "hsm", "bench")
        os.environ["SOFTHSM2_CONF"] = str(token.create())
        for profile in ProfileName:
            for name, median in measure(token.config, profile).items():
                print(f"{profile.value:9} {name:18} {median:9.1f} µs")


if __name__ == "__main__":
    main()
