"""Real processes, one enclave of four cheating: named, left out, proved by a file, readmitted by hand."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.api.models import SignatureValue, Signer
from appliance.localnet import LocalNet
from policies.requests import Hash

CHEATER = 2
ROOT = Path(__file__).parents[2]
WAIT_S = 90.0

pytestmark = pytest.mark.timeout(170)


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.2)


def keymoot(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("keymoot"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_cheating_enclave_is_convicted_left_out_and_readmitted() -> None:
    net = LocalNet(4, 1, gate=False, pool=(8, 16, 8))
    try:
        net.write()
        directory = net.plan.signer(CHEATER)
        cheat = directory / "cheat"
        cheat.touch()
        enclave = net.processes[f"enclave-{CHEATER}"]
        config = str(directory / "enclave.yaml")
        enclave.arguments = [sys.executable, "-m", "tests.fakes.cheating_enclave", "run", "--config", config]
        enclave.environment = {**enclave.environment, "PYTHONPATH": str(ROOT)}
        net.start()
        with net.client() as client:

            def cheater() -> Signer:
                return client.list_signers()[CHEATER - 1]

            # Named by the two honest members of a committee, that is by t + 1; and the others sign without it.
            until(lambda: cheater().convicted is not None)
            convicted = cheater().convicted
            assert convicted is not None
            assert (convicted.ceremony, convicted.step) == ("presign", "3.4")
            assert "signer-2" not in convicted.by
            assert len(convicted.by) == 2
            until(lambda: net.pools().get((1, 3, 4), 0) >= 8)
            assert {CHEATER} & {member for committee in net.pools() for member in committee} == set()
            key = client.create_key("left-out", secrets.token_hex(8))
            value = client.sign(key.id, Hash("0x" + secrets.token_hex(32), secrets.token_hex(8))).signature
            assert isinstance(value, SignatureValue)

            # The files that prove it, judged by anybody with the roster.
            honest = int(convicted.by[0].removeprefix("signer-"))
            files = list((net.plan.signer(honest) / "state" / "evidence").glob(f"*{convicted.evidence[:32]}.evidence"))
            assert len(files) == 1
            done = keymoot("evidence", "verify", files[0], "--roster", directory / "roster.yaml", "--json")
            assert done.returncode == 0, done.stderr
            assert [signer["index"] for signer in json.loads(done.stdout)["convicted"]] == [CHEATER]

            # Its operator found the reason; it is let in again.
            cheat.unlink()
            readmitted = keymoot(
                "coordinator", "readmit", "signer-2", "--config", net.root / "coordinator" / "coordinator.yaml"
            )
            assert readmitted.returncode == 0, readmitted.stderr
            until(lambda: cheater().convicted is None)
            until(lambda: any(CHEATER in committee and count for committee, count in net.pools().items()))
    finally:
        net.close()
