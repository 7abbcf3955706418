"""The HSM layer on modules other than SoftHSM: NSS softokn, and a TPM in software. In a process of their own each,
as an enclave would use them: a module that is unloaded, or stays half initialized, must not trouble other tests."""

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

from enclave.hsm import HsmConfig
from tests.fakes import nss, tpm

# Opens the module twice, as after an HSM went away, and uses all that the enclave uses.
SCRIPT = """
import json, sys, msgspec
from enclave.hsm import HsmConfig, HsmThread, RecordContext, SealBroken, open_hsm, provision
config = msgspec.json.decode(sys.stdin.buffer.read(), type=HsmConfig)
made = provision(config)
again = provision(config)
context = RecordContext("net", 1, "key", "key_1", 1, 1)
hsm = open_hsm(config, "net", 1)
sealed = hsm.seal(context, b"share")
signature = hsm.sign(bytes(32))
hsm.close()
hsm = open_hsm(config, "net", 1)
with hsm.unseal(context, sealed) as secret:
    opened = bytes(secret.reveal())
broken = 0
for place in (-1, len(sealed) // 2):
    altered = bytearray(sealed)
    altered[place] ^= 1
    try:
        hsm.unseal(context, bytes(altered))
    except SealBroken:
        broken += 1
hsm.healthy()
hsm.close()
print(json.dumps({
    "profile": made.profile, "same": made == again, "point": len(made.identity_point), "opened": opened.decode(),
    "broken": broken, "signature": len(signature),
}))
"""
EXPECTED = {"profile": "hmac-kdf", "same": True, "point": 65, "opened": "share", "broken": 2, "signature": 64}

need_nss = pytest.mark.skipif(bool(nss.missing()), reason=f"needs Debian's {nss.missing()}")
need_tpm = pytest.mark.skipif(bool(tpm.missing()), reason=f"needs Debian's {tpm.missing()}")


def run(script: str, config: HsmConfig, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        input=msgspec.json.encode(config).decode(),
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def result(ended: subprocess.CompletedProcess[str]) -> Any:
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture
def database(tmp_path: Path) -> nss.NssDatabase:
    made = nss.NssDatabase(tmp_path / "nss")
    made.create()
    return made


@pytest.fixture
def a_tpm() -> Iterator[tpm.Tpm]:
    # Not under tmp_path: the path of a Unix socket has at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="keymoot-tpm-"))
    made = tpm.Tpm(directory)
    try:
        made.create()
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory)


@need_nss
def test_nss_seals_by_hmac(database: nss.NssDatabase) -> None:
    assert result(run(SCRIPT, database.config)) == EXPECTED


@need_nss
def test_nss_by_slot(database: nss.NssDatabase) -> None:
    assert result(run(SCRIPT, msgspec.structs.replace(database.config, token_label=None, slot=2))) == EXPECTED


@need_nss
def test_nss_is_refused_unless_export_is_accepted(database: nss.NssDatabase) -> None:
    ended = run(SCRIPT, msgspec.structs.replace(database.config, accept_key_export=False))
    assert ended.returncode != 0
    assert "KeyExposed: the module exports key 'keymoot-identity' with AES_KEY_WRAP_PAD" in ended.stderr
    assert "hsm.accept_key_export" in ended.stderr


@need_nss
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"init_args": None}, "HsmAway"),
        ({"init_args": "configdir='sql:/nowhere/at/all'"}, "HsmAway"),
        ({"token_label": "other"}, "TokenMissing: there is no token 'other'"),
        ({"token_label": None, "slot": 77}, "TokenMissing: there is no token in slot 77"),
        ({"lib": "/nowhere.so"}, "HsmMisconfigured: cannot load the PKCS#11 library /nowhere.so"),
    ],
)
def test_nss_misconfigured(database: nss.NssDatabase, change: dict[str, object], error: str) -> None:
    ended = run(SCRIPT, msgspec.structs.replace(database.config, **change))
    assert ended.returncode != 0
    assert error in ended.stderr


@need_nss
def test_nss_wrong_pin(database: nss.NssDatabase) -> None:
    (database.directory / "pin").write_text("wrong")
    ended = run(SCRIPT, database.config)
    assert "PinRefused: token 'NSS Certificate DB' refused the PIN" in ended.stderr


AWAY = """
import json, select, sys, time, msgspec
from enclave.hsm import HsmConfig, HsmThread, RecordContext, open_hsm
config = msgspec.json.decode(sys.stdin.readline().encode(), type=HsmConfig)
context = RecordContext("net", 1, "key", "key_1", 1, 1)
thread = HsmThread(lambda: open_hsm(config, "net", 1), idle_check_s=0.2)
thread.wait_ready(20)
def until(state):
    deadline_s = time.monotonic() + 40
    while thread.state[0] != state:
        assert time.monotonic() < deadline_s, thread.state
        select.select([thread], [], [], 1.0)
        thread.drain()
    print(state, flush=True)
def call(job):
    results = []
    thread.submit(job, results.append)
    while not results:
        select.select([thread], [], [], 1.0)
        thread.drain()
    return results[0]
sealed = call(lambda hsm: hsm.seal(context, b"share"))
until("ready")
until("hsm-away")
until("ready")
with call(lambda hsm: hsm.unseal(context, sealed)) as secret:
    assert bytes(secret.reveal()) == b"share"
thread.close()
print("done", flush=True)
"""


@need_tpm
def test_tpm_seals_by_hmac_goes_away_and_comes_back(a_tpm: tpm.Tpm) -> None:
    assert result(run(SCRIPT, a_tpm.config, a_tpm.environment)) == EXPECTED
    with subprocess.Popen(
        [sys.executable, "-c", AWAY],
        env={**os.environ, **a_tpm.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(a_tpm.config).decode() + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        a_tpm.switch_off()
        assert process.stdout.readline() == "hsm-away\n"
        a_tpm.start()
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == "done\n"


@need_tpm
def test_tpm_wrong_pin(a_tpm: tpm.Tpm) -> None:
    (a_tpm.directory / "pin").write_text("wrong")
    ended = run(SCRIPT, a_tpm.config, a_tpm.environment)
    assert "PinRefused: token 'keymoot' refused the PIN" in ended.stderr


@need_tpm
def test_tpm_makes_no_keys_by_pkcs11(a_tpm: tpm.Tpm) -> None:
    ended = run(SCRIPT, msgspec.structs.replace(a_tpm.config, sealing_key_label="other"), a_tpm.environment)
    assert "HsmMisconfigured: the module makes no sealing key through PKCS#11 (FunctionNotSupported)" in ended.stderr
