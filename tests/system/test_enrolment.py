"""Operators' way into a network, by the command line alone: init, identities, roster, gate secrets, on SoftHSM."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import nss
from tests.fakes.softhsm import SoftToken, library

NAMES = ("north", "south", "west")


def keymoot(*arguments: str | Path, conf: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if conf is None else {"SOFTHSM2_CONF": str(conf)})}
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        input=stdin,
        env=environment,
    )


def init_signer(root: Path, name: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    token = SoftToken(root / f"hsm-{name}", "keymoot")
    conf = token.create()
    done = keymoot(
        *("init", "signer", root / name, "--network", "net", "--name", name, "--operator", f"{name} ltd"),
        *("--coordinator", "c=https://127.0.0.1:9", "--coordinator-ca", root / "c" / "ca.pem"),
        *("--pin", f"file:{token.directory / 'pin'}", "--hsm-lib", str(library())),
        *("--gate", "https://127.0.0.1:9/validate", "--gate-ca", root / "c" / "ca.pem"),
        conf=conf,
    )
    return done, conf


def test_three_operators_enrol(tmp_path: Path) -> None:
    assert keymoot("init", "coordinator", tmp_path / "c", "--network", "net", "--name", "c").returncode == 0
    confs = {}
    for name in NAMES:
        done, confs[name] = init_signer(tmp_path, name)
        assert done.returncode == 0, done.stderr
        identity = json.loads((tmp_path / name / "identity.json").read_text())
        assert f"fingerprint  {identity['fingerprint']}" in done.stdout
        assert (identity["name"], identity["operator"]) == (name, f"{name} ltd")
        assert stat.S_IMODE((tmp_path / name / "signer.key").stat().st_mode) == 0o600

    identities = [tmp_path / name / "identity.json" for name in NAMES]
    roster = tmp_path / "roster.yaml"
    assert keymoot("roster", "assemble", *identities, "--tolerate", "1", "-o", roster).returncode == 0
    policy = Path(__file__).parents[2] / "policies" / "treasury-four-eyes.yaml"
    for name in NAMES:
        (tmp_path / name / "roster.yaml").write_text(roster.read_text())
        (tmp_path / name / "policy.yaml").write_text(policy.read_text())

    config, handler = tmp_path / "north" / "enclave.yaml", tmp_path / "gate-secrets.json"
    sealed = keymoot("gate", "secret", "-c", config, "--generate", handler, conf=confs["north"])
    assert sealed.returncode == 0, sealed.stderr
    assert stat.S_IMODE(handler.stat().st_mode) == 0o600
    stored = (tmp_path / "north" / "gate-secrets.sealed").read_bytes()
    for secret in json.loads(handler.read_text()).values():
        assert secret.encode() not in stored
        assert base64.b64decode(secret.removeprefix("whsec_")) not in stored
        assert secret not in sealed.stdout + sealed.stderr

    handed_in = keymoot("gate", "secret", "-c", config, conf=confs["north"], stdin=handler.read_text())
    assert handed_in.returncode == 0, handed_in.stderr

    (tmp_path / "north" / "gate-secrets.sealed").unlink()
    for unusable, why in (
        ("", "gate secrets must be JSON"),
        ("{}", "gate secrets must be JSON with a key for each direction"),
        ('{"request_hmac": "whsec_AAAA", "answer_hmac": 3}', "gate secrets must be JSON"),
    ):
        refused = keymoot("gate", "secret", "-c", config, conf=confs["north"], stdin=unusable)
        assert refused.returncode == 2
        assert why in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not (tmp_path / "north" / "gate-secrets.sealed").exists()


def test_a_wrong_pin_is_told_without_the_pin(tmp_path: Path) -> None:
    keymoot("init", "coordinator", tmp_path / "c", "--network", "net", "--name", "c")
    token = SoftToken(tmp_path / "hsm", "keymoot")
    conf = token.create()
    token.write_pin("not-the-pin-91827")
    outcome = keymoot(
        *("init", "signer", tmp_path / "s", "--network", "net", "--name", "s", "--operator", "o"),
        *("--coordinator", "c=https://127.0.0.1:9", "--coordinator-ca", tmp_path / "c" / "ca.pem"),
        *("--pin", f"file:{token.directory / 'pin'}", "--hsm-lib", str(library())),
        conf=conf,
    )
    assert outcome.returncode in (2, 3)
    assert "PIN" in outcome.stderr
    assert "91827" not in outcome.stderr + outcome.stdout
    assert "Traceback" not in outcome.stderr


def init_with(root: Path, *options: str | Path, conf: Path | None = None) -> subprocess.CompletedProcess[str]:
    ca = root / "c" / "ca.pem"
    if not ca.exists():
        assert keymoot("init", "coordinator", root / "c", "--network", "net").returncode == 0
    return keymoot(
        *("init", "signer", root / "s", "--network", "net", "--name", "s", "--operator", "S", "--json"),
        *("--coordinator", "c=https://127.0.0.1:9", "--coordinator-ca", ca, *options),
        conf=conf,
    )


def test_a_token_named_by_its_slot(tmp_path: Path) -> None:
    token = SoftToken(tmp_path / "hsm", "keymoot")
    conf = token.create()
    access = ("--lib", str(library()), "--pin", f"file:{token.directory / 'pin'}")
    slot = json.loads(keymoot("hsm", "check", *access, "--token-label", "keymoot", "--json", conf=conf).stdout)["slot"]
    done = init_with(tmp_path, *access, "--slot", str(slot), conf=conf)
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert (shown["sealing"], shown["directory"]) == ("gcm", str(tmp_path / "s"))
    assert shown["fingerprint"] == json.loads((tmp_path / "s" / "identity.json").read_text())["fingerprint"]
    assert f"  slot: {slot}\n" in (tmp_path / "s" / "enclave.yaml").read_text()


def test_a_wrong_pin_leaves_nothing_behind_and_the_right_one_then_works(tmp_path: Path) -> None:
    token = SoftToken(tmp_path / "hsm", "keymoot")
    conf = token.create()
    pin = tmp_path / "pin"
    pin.touch(0o600)
    pin.write_text("not the PIN")
    options = ("--lib", str(library()), "--pin", f"file:{pin}")
    done = init_with(tmp_path, *options, conf=conf)
    assert done.returncode == 2
    assert "PIN" in done.stderr
    assert not (tmp_path / "s").exists()
    pin.write_bytes((token.directory / "pin").read_bytes())
    assert init_with(tmp_path, *options, conf=conf).returncode == 0


@pytest.mark.skipif(bool(nss.missing()), reason=f"needs Debian's {nss.missing()}")
def test_nss_is_enrolled_where_its_export_of_keys_is_accepted(tmp_path: Path) -> None:
    database = nss.NssDatabase(tmp_path / "nss")
    database.create()
    hsm = database.config
    options = ("--lib", hsm.lib, "--pin", hsm.pin, "--token-label", nss.LABEL, "--init-args", hsm.init_args or "")
    refused = init_with(tmp_path, *options)
    assert refused.returncode == 2
    assert "accept_key_export" in refused.stderr
    assert not (tmp_path / "s").exists()
    done = init_with(tmp_path, *options, "--accept-key-export")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["sealing"] == "hmac-kdf"
