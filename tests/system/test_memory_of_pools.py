"""What 100,000 presignatures take of the memory of a real enclave, its worker that made them included."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.localnet import LocalNet
from appliance.localnet.files import COORDINATOR

PRESIGNATURES = 100_000
MAX_MB = 60.0
FILL_TIMEOUT_S = 300.0


def enclave_and_worker(pid: int) -> tuple[int, ...]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (pid, *map(int, children))


def resident_mb(pids: tuple[int, ...]) -> float:
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_hundred_thousand_presignatures_take_at_most_60_mb() -> None:
    with LocalNet(3, 1, gate=False, pool=(1, 1, 1)) as net:
        net.wait_for_pool(1)
        enclaves = [enclave_and_worker(net.processes[f"enclave-{index}"].pid) for index in net.plan.indices]
        assert {len(pids) for pids in enclaves} == {2}
        before = [resident_mb(pids) for pids in enclaves]
        net.configure_pool((PRESIGNATURES, PRESIGNATURES, 10_000))
        net.restart(COORDINATOR)
        net.wait_for_pool(PRESIGNATURES, FILL_TIMEOUT_S)
        grown = [resident_mb(pids) - was for pids, was in zip(enclaves, before, strict=True)]
    # What is kept alone: a share of 32 bytes and a point of 64.
    assert min(grown) > PRESIGNATURES * 96 / 2**20
    assert max(grown) < MAX_MB
