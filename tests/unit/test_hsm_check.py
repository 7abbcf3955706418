"""`keymoot hsm check` on every module that is installed: what works, what is chosen, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enclave.hsm import HsmConfig, provision
from enclave.hsm.module import open_module
from tests.fakes import nss, tpm
from tests.fakes.softhsm import SoftToken

EVERYTHING = {
    "AES-256-GCM",
    "HMAC-SHA256",
    "AES key wrap",
    "ECDSA P-256",
    "Ed25519",
    "seal counter",
    "keys stay secret",
    "keys cannot leave",
}
# Prints how many objects of which label the token holds, sessions' own included.
OBJECTS = """
import json, sys, msgspec
from pkcs11 import Attribute
from enclave.hsm import HsmConfig
from enclave.hsm.module import open_module
module = open_module(msgspec.json.decode(sys.stdin.buffer.read(), type=HsmConfig))
print(json.dumps(sorted(str(found.object_class) + found[Attribute.LABEL] for found in module.session.get_objects())))
module.close()
"""


def keymoot(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli", "hsm", "check", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def options(config: HsmConfig) -> list[str]:
    named = ["--lib", config.lib, "--pin", config.pin]
    named += ["--token-label", config.token_label] if config.token_label else ["--slot", str(config.slot)]
    return named if config.init_args is None else [*named, "--init-args", config.init_args]


def checked(*arguments: str, environment: dict[str, str] | None = None, code: int = 0) -> Any:
    ended = keymoot(*arguments, "--json", environment=environment)
    assert ended.returncode == code, ended.stderr
    found = json.loads(ended.stdout)
    assert {one["name"] for one in found["operations"]} == EVERYTHING
    assert found["usable"] is (code == 0)
    for one in found["operations"]:
        assert one["median_us"] is None or one["median_us"] > 0
    return found


def working(found: Any) -> set[str]:
    return {one["name"] for one in found["operations"] if one["works"]}


def objects(config: HsmConfig, environment: dict[str, str] | None = None) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-c", OBJECTS],
        input=msgspec.json.encode(config),
        env={**os.environ, **(environment or {})},
        capture_output=True,
        check=True,
        timeout=60,
    )
    return list(json.loads(ended.stdout))


def enclave_file(directory: Path, config: HsmConfig) -> Path:
    section = {name: value for name, value in msgspec.to_builtins(config).items() if value}
    file = {
        "network": "testnet",
        "signer": "signer-1",
        "roster": "roster.yaml",
        "policy": "policy.yaml",
        "socket": "enclave.sock",
        "hsm": section,
        "gate": {"mode": "signed"},
    }
    path = directory / "enclave.yaml"
    path.write_text(json.dumps(file))
    return path


def test_softhsm_can_do_everything(token: SoftToken) -> None:
    found = checked(*options(token.config))
    assert working(found) == EVERYTHING
    assert found["profile"] == "gcm"
    assert found["token"] == "keymoot-test"
    assert found["login_us"] > 0
    assert {one["name"] for one in found["operations"] if one["median_us"]} == {
        "AES-256-GCM",
        "HMAC-SHA256",
        "AES key wrap",
        "ECDSA P-256",
        "Ed25519",
    }
    assert objects(token.config) == []


def test_configuration_and_slot_find_the_same_token(token: SoftToken, tmp_path: Path) -> None:
    found = checked("--config", str(enclave_file(tmp_path, token.config)))
    by_slot = msgspec.structs.replace(token.config, token_label=None, slot=found["slot"])
    assert checked(*options(by_slot))["token"] == "keymoot-test"
    # The slot serves the enclave too.
    assert provision(by_slot).profile == "gcm"


def test_existing_keys_are_left_as_they_were(token: SoftToken) -> None:
    provision(token.config)
    before = objects(token.config)
    assert len(before) == 4
    checked(*options(token.config))
    assert objects(token.config) == before
    open_module(token.config).close()


def test_table_for_people(token: SoftToken) -> None:
    shown = keymoot(*options(token.config))
    assert shown.returncode == 0
    assert "AES-256-GCM" in shown.stdout
    assert "Keymoot seals with profile gcm: AES-256-GCM works" in shown.stdout
    assert token.user_pin not in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"lib": "/nowhere.so"}, 2, "cannot load the PKCS#11 library /nowhere.so"),
        ({"token_label": "other"}, 3, "there is no token 'other'"),
        ({"pin": "file:/nowhere"}, 2, "cannot read the PIN from /nowhere"),
        ({"pin": "1234"}, 2, "$.pin"),
    ],
)
def test_mistakes(token: SoftToken, change: dict[str, object], code: int, message: str) -> None:
    ended = keymoot(*options(msgspec.structs.replace(token.config, **change)))
    assert ended.returncode == code
    assert message in ended.stderr
    assert ended.stdout == ""


def test_wrong_pin(token: SoftToken) -> None:
    token.write_pin("pin-wrong-4711")
    ended = keymoot(*options(token.config))
    assert ended.returncode == 2
    assert "refused the PIN" in ended.stderr
    assert "4711" not in ended.stderr


def test_nothing_named() -> None:
    ended = keymoot()
    assert ended.returncode == 2
    assert "--config, or by --lib" in ended.stderr


@pytest.fixture
def database(tmp_path: Path) -> nss.NssDatabase:
    made = nss.NssDatabase(tmp_path / "nss")
    made.create()
    return made


@pytest.mark.skipif(bool(nss.missing()), reason=f"needs Debian's {nss.missing()}")
def test_nss_is_usable_only_where_export_is_accepted(database: nss.NssDatabase, tmp_path: Path) -> None:
    before = objects(database.config)
    found = checked(*options(database.config), code=1)
    assert working(found) == {"HMAC-SHA256", "AES key wrap", "ECDSA P-256", "keys stay secret"}
    assert found["profile"] is None
    assert "AES_KEY_WRAP" in found["reason"]
    assert "hsm.accept_key_export accepts that" in found["reason"]
    found = checked("--config", str(enclave_file(tmp_path, database.config)))
    assert found["profile"] == "hmac-kdf"
    assert objects(database.config) == before


@pytest.fixture
def a_tpm() -> Iterator[tpm.Tpm]:
    directory = Path(tempfile.mkdtemp(prefix="keymoot-tpm-"))
    made = tpm.Tpm(directory)
    try:
        made.create()
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory)


@pytest.mark.skipif(bool(tpm.missing()), reason=f"needs Debian's {tpm.missing()}")
def test_tpm_is_checked_with_the_tokens_own_keys(a_tpm: tpm.Tpm, tmp_path: Path) -> None:
    before = objects(a_tpm.config, a_tpm.environment)
    found = checked(*options(a_tpm.config), environment=a_tpm.environment)
    assert {"HMAC-SHA256", "ECDSA P-256", "keys stay secret", "keys cannot leave"} <= working(found)
    assert not {"AES-256-GCM", "AES key wrap", "Ed25519"} & working(found)
    assert found["profile"] == "hmac-kdf"
    assert "with key 'keymoot-seal-1'" in json.dumps(found)
    assert objects(a_tpm.config, a_tpm.environment) == before
    other = msgspec.structs.replace(a_tpm.config, identity_key_label="other")
    found = checked("--config", str(enclave_file(tmp_path, other)), environment=a_tpm.environment, code=1)
    assert "no key 'other' exists" in json.dumps(found)
