"""`keymoot doctor` on a real network: all well, then one thing after the other broken, and what it says of it."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.api.credentials import new_token, save_token, token_sha256
from appliance.checkup.checks import Checked, Result, run
from appliance.checkup.doctor import Around, directory_checks
from appliance.checkup.seen_by_api import OPERATOR_TOKEN, coordinators_own_check
from appliance.localnet import LocalNet
from appliance.templates import reader_yaml
from tests.fakes.softhsm import library

MAKE_EXPORTABLE = """
import sys, pkcs11
_, path, label, pin = sys.argv
with pkcs11.lib(path).get_token(token_label=label).open(rw=True, user_pin=pin.strip()) as session:
    open_to_all = {pkcs11.Attribute.SENSITIVE: False, pkcs11.Attribute.EXTRACTABLE: True}
    session.generate_key(pkcs11.KeyType.AES, 256, label="by-hand", store=True, template=open_to_all)
"""
# What depends on the machine that runs the tests, and on a network that has no authority for each operator.
OF_THE_MACHINE = {"authorities", "clock", "snapshots", "memory", "hardening", "separation"}


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    with LocalNet(pool=(10, 20, 20)) as running:
        running.wait_for_pool(20)
        yield running


@pytest.fixture(autouse=True)
def _hsm(net: LocalNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", str(net.plan.signer(1) / "softhsm2.conf"))


def doctor(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", "doctor", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


@contextmanager
def changed(path: Path, old: str, new: str) -> Iterator[None]:
    """One thing else in a file, for a while."""
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new, 1))
    try:
        yield
    finally:
        path.write_text(before)


def examined(directory: Path, around: Around | None = None) -> dict[str, list[Checked]]:
    """The results by check."""
    told: dict[str, list[Checked]] = {}
    for one in run(directory_checks(directory, around or Around())):
        told.setdefault(one.check, []).append(one)
    return told


def wrong(told: dict[str, list[Checked]]) -> dict[str, str]:
    """What is not well, and does not depend on this machine."""
    return {
        name: one.what
        for name, results in told.items()
        for one in results
        if one.result is not Result.OK and name not in OF_THE_MACHINE
    }


def test_everything_is_well_and_nothing_secret_is_shown(net: LocalNet) -> None:
    places = [net.plan.signer(1), net.root / "coordinator", net.plan.gate_directory(1)]
    _, text = doctor(*places, "--profile", net.profile, "--json")
    (line,) = text.splitlines()
    document: dict[str, Any] = json.loads(line)
    checks = document["checks"]
    assert [one for one in checks if one["check"] not in OF_THE_MACHINE and one["result"] != "ok"] == []
    assert {one["check"] for one in checks} == OF_THE_MACHINE | {
        *("configuration", "hsm", "processes", "connections", "clocks", "agreement", "gate", "certificates"),
        *("disk", "store", "files", "filter", "reach", "network"),
    }
    assert all(one["remedy"] for one in checks if one["result"] != "ok")
    said = {one["check"]: one["what"] for one in checks if one["subject"] in ("signer-1", "network")}
    assert said["hsm"] == "token keymoot by SoftHSM: seals with gcm, keys cannot leave"
    assert said["clocks"] == "as at coordinator"
    assert said["processes"] == "signer and enclave run version 0.1.0, ready"
    assert said["network"].endswith("all run version 0.1.0")
    secrets = [(net.plan.signer(1) / "pin").read_text(), (net.profile.parent / "client.token").read_text().strip()]
    secrets += json.loads((net.plan.gate_directory(1) / "gate-secrets.json").read_text()).values()
    assert not [secret for secret in secrets if secret in text]


def test_the_table_for_people_and_the_exit_code(net: LocalNet) -> None:
    code, text = doctor(net.plan.gate_directory(1))
    words = " ".join(text.split())
    assert "ok certificates gate-1 all are good for 30 days" in words
    assert code == (1 if "warning" in text or "problem" in text else 0)
    assert ("All is well" in text) == (code == 0)


def test_without_a_directory(net: LocalNet, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", "doctor"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "name a directory" in done.stderr


def test_clocks_that_differ_and_certificates_that_end(net: LocalNet) -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=810, hours=1)
    told = wrong(examined(net.plan.signer(1), Around(now=lambda: later)))
    assert told == {
        "clocks": "the clocks of coordinator coordinator and of this host differ by 810 days",
        "certificates": "signer.pem expires in 14 days",
    }
    past = later + datetime.timedelta(days=20)
    (ended,) = [
        one for one in examined(net.plan.signer(1), Around(now=lambda: past))["certificates"]
        if one.what.startswith("signer.pem")
    ]  # fmt: skip
    assert (ended.result, ended.what) == (Result.PROBLEM, "signer.pem has expired")
    assert ended.remedy.startswith("keymoot pki renew")


def test_files_that_are_not_those_that_run(net: LocalNet) -> None:
    with changed(net.plan.signer(1) / "policy.yaml", "name: everything", "name: all"):
        told = wrong(examined(net.plan.signer(1)))
    assert list(told) == ["agreement"]
    assert told["agreement"].startswith("its enclave runs with another policy (")
    with changed(net.plan.signer(1) / "roster.yaml", "operator: ", "operator: Another "):
        told = wrong(examined(net.plan.signer(1)))
    assert list(told) == ["agreement"]
    assert told["agreement"].startswith("its enclave runs with another roster (")


def test_a_configuration_with_a_mistake_in_it(net: LocalNet) -> None:
    with changed(net.plan.signer(1) / "policy.yaml", "blind: true", "blind: maybe"):
        code, text = doctor(net.plan.signer(1), "--json")
    document = json.loads(text)
    assert (code, document["status"]) == (1, "attention")
    (told,) = [one for one in document["checks"] if one["check"] == "configuration"]
    assert told["result"] == "problem"
    assert re.search(r"policy\.yaml:\d+:\d+: ", told["what"])
    assert told["remedy"].startswith("Correct enclave.yaml")


def test_hsm_keys_that_are_missing_or_anothers(net: LocalNet, monkeypatch: pytest.MonkeyPatch) -> None:
    enclave = net.plan.signer(1) / "enclave.yaml"
    with changed(enclave, "keymoot-seal-1", "keymoot-seal-2"):
        told = wrong(examined(net.plan.signer(1)))
    assert list(told) == ["hsm"]
    assert told["hsm"].startswith("no secret key 'keymoot-seal-2' on the token")
    # A key that somebody made by hand, and that the token gives out.
    script = [sys.executable, "-c", MAKE_EXPORTABLE, library(), "keymoot", (net.plan.signer(1) / "pin").read_text()]
    subprocess.run([*map(str, script)], check=True, capture_output=True)
    with changed(enclave, "keymoot-seal-1", "by-hand"):
        told = wrong(examined(net.plan.signer(1)))
    assert list(told) == ["hsm"]
    assert told["hsm"].startswith("key 'by-hand' is not sensitive and non-extractable")
    # Another signer's token under the same label, with its PIN.
    pin = net.plan.signer(1) / "pin"
    own = pin.read_text()
    monkeypatch.setenv("SOFTHSM2_CONF", str(net.plan.signer(2) / "softhsm2.conf"))
    try:
        pin.write_text((net.plan.signer(2) / "pin").read_text())
        told = wrong(examined(net.plan.signer(1)))
    finally:
        pin.write_text(own)
    assert list(told) == ["hsm"]
    assert "is not the one the roster lists" in told["hsm"]


def test_hosts_with_one_process_alone(net: LocalNet, tmp_path: Path) -> None:
    full = net.plan.signer(1)
    enclave, signer = tmp_path / "enclave", tmp_path / "signer"
    for place, names in ((enclave, ("roster.yaml", "policy.yaml")), (signer, ("signer.pem", "coordinator-ca.pem"))):
        place.mkdir()
        for name in names:
            shutil.copy(full / name, place)
    text = (full / "enclave.yaml").read_text()
    (enclave / "enclave.yaml").write_text(
        text.replace("socket: run", f"socket: {full}/run").replace("file:pin", f"file:{full}/pin")
    )
    told = examined(enclave)
    assert set(told) == {"configuration", "hsm", "memory", "hardening", "filter", "separation", "files"}
    assert wrong(told) == {"configuration": "the gate's secrets are missing"}
    text = (full / "signer.yaml").read_text()
    for name in ("run/", "state/", "signer.key", "gate-ca.pem"):
        text = text.replace(f": {name}", f": {full}/{name}")
    (signer / "signer.yaml").write_text(text)
    told = examined(signer)
    assert wrong(told) == {}
    assert {"processes", "connections", "clocks", "gate", "certificates", "disk", "store"} <= set(told)
    assert "hsm" not in told


def test_a_coordinators_operator_sees_the_network(net: LocalNet) -> None:
    directory = net.root / "coordinator"
    token = new_token()
    save_token(token, directory / OPERATOR_TOKEN)
    config = directory / "coordinator.yaml"
    (check,) = coordinators_own_check(directory, Around().now)
    (told,) = run([check])
    assert told.result is Result.PROBLEM
    assert "credential" in told.what
    config.write_text(
        config.read_text().replace("  readers:\n", "  readers:\n" + reader_yaml("operator", token_sha256(token)))
    )
    net.restart("coordinator")
    net.wait_for_pool(20)
    net.wait_for(lambda: next(run([check])).result is Result.OK, "the operator to be let in")


def test_what_an_enclave_relies_on_at_its_gate(net: LocalNet) -> None:
    secrets = net.plan.gate_directory(1) / "gate-secrets.json"
    told = examined(net.plan.signer(1), Around(gate_secrets=secrets))
    assert "gate-conformance" not in wrong(told)
    (good,) = told["gate-conformance"]
    assert good.what.endswith("checks)")
    others = net.plan.gate_directory(2) / "gate-secrets.json"
    told = examined(net.plan.signer(1), Around(gate_secrets=others))
    assert {one.result for one in told["gate-conformance"]} >= {Result.PROBLEM}


def test_secrets_that_everybody_may_read(net: LocalNet) -> None:
    key = net.plan.gate_directory(2) / "server.key"
    key.chmod(0o644)
    try:
        told = wrong(examined(net.plan.gate_directory(2)))
    finally:
        key.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert told == {"files": "everybody may use server.key (mode 0644)"}


def test_a_gate_a_coordinator_and_an_enclave_that_are_away(net: LocalNet) -> None:
    for name in ("gate-1", "coordinator", "enclave-1"):
        net.kill(name)
        net.processes.pop(name)
    net.kill("signer-1")
    net.processes.pop("signer-1")
    told = wrong(examined(net.plan.signer(1)))
    assert set(told) == {"processes", "connections", "gate"}
    assert "the enclave does not answer" in told["processes"]
    assert "Connection refused" in told["gate"]
    code, text = doctor(net.plan.signer(1), "--json")
    assert (code, json.loads(text)["status"]) == (1, "attention")
    assert set(wrong(examined(net.root / "coordinator"))) == {"processes"}
    assert set(wrong(examined(net.plan.gate_directory(1)))) == {"processes"}
