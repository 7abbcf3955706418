"""`keymoot status` and `keymoot pool` on a real network: well, then with one part after the other broken."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.localnet import LocalNet

POOL = (40, 100, 50)


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    with LocalNet(pool=POOL) as running:
        running.wait_for_pool(POOL[1])
        yield running


def keymoot(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and standard output; standard error must hold no trace."""
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def status(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code, out = keymoot("status", *arguments, "--json")
    return code, json.loads(out)


def subjects(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["severity"], one["subject"]) for one in document["findings"]]


def signers_told(net: LocalNet) -> bool:
    """Whether the coordinator has heard of every enclave's condition."""
    with net.client() as client:
        return all(signer.condition is not None for signer in client.list_signers())


def test_a_network_that_is_well(net: LocalNet) -> None:
    net.wait_for(lambda: signers_told(net), "the signers' conditions")
    code, document = status("--profile", net.profile)
    assert (code, document["status"], document["findings"]) == (0, "ok", [])
    assert [one["condition"]["enclave"] for one in document["signers"]] == ["ready"] * 3
    code, text = keymoot("status", "--profile", net.profile)
    assert code == 0
    assert text.splitlines()[0] == "Network loopback  3 signers, tolerate 1: all 3 online to sign, 2 shares reconstruct"
    assert text.splitlines()[-1] == "All is well."


def test_the_directories_of_a_host_that_is_well(net: LocalNet) -> None:
    places = [net.plan.signer(1), net.root / "coordinator", net.plan.gate_directory(1)]
    code, document = status(*places)
    assert (code, document["findings"]) == (0, [])
    (host,) = document["hosts"]
    assert (host["name"], host["status"]["enclave"], host["enclave"]["gate_mode"]) == ("signer-1", "ready", "signed")
    assert host["status"]["coordinators"][0]["up"]


def test_the_pools_as_a_view_as_lines_and_as_json(net: LocalNet) -> None:
    code, text = keymoot("pool", "--profile", net.profile, "--once", "--burst", "70")
    assert code == 0
    first, last = text.splitlines()
    assert re.search(r"  pool 1-2-3  \d+ of 40\.\.100  used 0\.0/s  empty in -  refill not due$", first)
    assert last.endswith("for 70 signatures at once: pool.low 70, pool.high 120")
    code, text = keymoot("pool", "--profile", net.profile, "--once", "--json")
    shown = json.loads(text)
    assert (code, shown["waiting"], [one["committee"] for one in shown["pools"]]) == (0, 0, [[1, 2, 3]])


def test_the_live_view_on_a_terminal(net: LocalNet) -> None:
    screen, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "pool", "--profile", str(net.profile), "--interval", "0.2"],
        stdin=child, stdout=child, stderr=child, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        # Whatever started these tests may ignore the signal, which a child would inherit: `make test &` does.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(child)
    seen = b""
    try:
        while seen.count(b"1-2-3") < 3:
            seen += os.read(screen, 65_536)
        process.send_signal(signal.SIGINT)
        # A terminal goes on reading; one that does not holds up whoever writes to it.
        with contextlib.suppress(OSError):
            while os.read(screen, 65_536):
                pass
        assert process.wait(20) == 130
    finally:
        process.kill()
        os.close(screen)
    assert b"level" in seen


def test_an_enclave_and_a_gate_that_are_gone_are_named_at_their_hosts_and_in_the_network(net: LocalNet) -> None:
    net.kill("enclave-2")
    net.kill("gate-3")

    def noticed() -> bool:
        with net.client() as client:
            return not client.list_signers()[1].online

    net.processes.pop("enclave-2"), net.processes.pop("gate-3")
    net.wait_for(noticed, "the coordinator to notice")
    code, document = status(
        "--profile", net.profile, net.plan.signer(2), net.plan.signer(3), net.plan.gate_directory(3)
    )
    assert code == 1
    assert set(subjects(document)) == {("problem", name) for name in ("signer-2", "signer-3", "gate-3")}
    said = " ".join(one["what"] for one in document["findings"])
    assert "nothing can be signed: 3 signers must be online, 2 are" in said
    assert "no enclave is connected: enclave socket" in said
    assert "Connection refused" in said


def test_a_coordinator_that_is_gone_is_unreachable(net: LocalNet) -> None:
    net.kill("coordinator")
    code, document = status("--profile", net.profile, net.plan.signer(1), net.root / "coordinator")
    assert (code, document["status"]) == (3, "unreachable")
    assert {subject for _, subject in subjects(document)} == {"coordinator", "signer-1"}
    code, text = keymoot("status", "--profile", net.profile)
    assert code == 3
    assert "Connection refused" in text
    assert text.splitlines()[-1] == "The coordinator cannot be reached: nothing is known of the signers."
