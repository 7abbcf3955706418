"""Rotating the sealing key in a network of real processes: all records rewrapped, the old key removed, signing."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from appliance import rewrapping
from appliance.localnet import LocalNet
from appliance.store.signer import SignerStore
from enclave.hsm.records import SealedRecord
from enclave.wire import decode
from policies.errors import CallerError
from policies.requests import Hash

POOL = (10, 20, 20)
OLD, NEW = "keymoot-seal-1", "keymoot-seal-2"
REMOVE = """
import sys
from pathlib import Path
from pkcs11 import Attribute
from enclave.config import load_config
from enclave.hsm.module import open_module
module = open_module(load_config(Path(sys.argv[1])).hsm)
found = list(module.session.get_objects({Attribute.LABEL: sys.argv[2]}))
assert found
for one in found:
    one.destroy()
module.close()
"""

pytestmark = pytest.mark.timeout(170)


@pytest.fixture
def net() -> Iterator[LocalNet]:
    with LocalNet(pool=POOL) as made:
        made.wait_for_pool(POOL[0])
        yield made


def labels(directory: Path) -> set[str]:
    """The sealing keys that a signer's records need."""
    with closing(sqlite3.connect(directory / "state" / "signer.db")) as database:
        sealed = [row for (row,) in database.execute("SELECT sealed FROM records")]
    sealed.append((directory / "gate-secrets.sealed").read_bytes())
    return {decode(one, SealedRecord).key_label for one in sealed}


def hsm_section(directory: Path, sealing: str, retired: str) -> None:
    """Name other sealing keys in enclave.yaml."""
    path = directory / "enclave.yaml"
    lines = [line for line in path.read_text().splitlines() if "_key_label" not in line]
    place = next(number for number, line in enumerate(lines) if line.startswith("hsm:"))
    lines[place + 1 : place + 1] = [f"  sealing_key_label: {sealing}", f"  retired_key_labels: [{retired}]"]
    path.write_text("\n".join(lines) + "\n")


def run(net: LocalNet, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *words], env=net.plan.environment(1), cwd=Path(__file__).parents[2], capture_output=True
    )


def test_a_new_sealing_key_stopped_halfway_and_done(net: LocalNet, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = net.plan.signer(1)
    config, store_path = directory / "enclave.yaml", directory / "state" / "signer.db"
    with net.client() as client:
        keys = [client.create_key(f"test/rewrap-{number}", f"rewrap-{number}") for number in range(2)]
    for name in ("signer-1", "enclave-1"):
        net.processes[name].stop()
    assert labels(directory) == {OLD}
    hsm_section(directory, NEW, OLD)

    # The first page is committed, then the run is stopped.
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stopped(f"{done} of {total}")

    async def first_page() -> None:
        store = SignerStore.open(store_path)
        try:
            await rewrapping.rewrap(config, store, stop)
        finally:
            await store.close()

    with monkeypatch.context() as patched:
        patched.setattr(rewrapping, "PAGE", 1)
        for name, value in net.plan.environment(1).items():
            patched.setenv(name, value)
        with pytest.raises(Stopped, match="1 of "):
            asyncio.run(first_page())
    assert labels(directory) == {OLD, NEW}

    command = ("-m", "appliance.cli", "hsm", "rewrap", "-c", str(config), "--signer", str(directory / "signer.yaml"))
    done = run(net, *command, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["already"], told["rewrapped"], told["broken"]) == (1, told["records"] - 1, [])
    assert told["records"] >= 3
    assert labels(directory) == {NEW}

    # Nothing needs the old key any more.
    assert run(net, "-c", REMOVE, str(config), OLD).returncode == 0
    hsm_section(directory, NEW, "")
    for name in ("enclave-1", "signer-1"):
        net.processes[name].start()
    net.wait_for_pool(1)
    with net.client() as client:
        for key in keys:
            client.sign(key.id, Hash("0x" + secrets.token_hex(32), "after-" + secrets.token_hex(8)))


def test_without_the_old_key_nothing_is_changed_and_the_reason_told(net: LocalNet) -> None:
    directory = net.plan.signer(1)
    for name in ("signer-1", "enclave-1"):
        net.processes[name].stop()
    hsm_section(directory, NEW, "")
    before = (directory / "state" / "signer.db").read_bytes()
    config, signer = directory / "enclave.yaml", directory / "signer.yaml"
    done = run(net, "-m", "appliance.cli", "hsm", "rewrap", "-c", str(config), "--signer", str(signer), "--json")
    assert done.returncode == 2
    assert b"hsm.retired_key_labels" in done.stderr
    assert labels(directory) == {OLD}
    assert (directory / "state" / "signer.db").read_bytes() == before


def test_a_signer_without_a_store_is_told_so(tmp_path: Path) -> None:
    from appliance.cli.hsm import rewrap

    text = (
        "network: n\nenclave_socket: s\nstate: nowhere\n"
        "coordinators: [{name: main, url: 'https://h:1', ca: a, certificate: b, key: c}]\n"
    )
    (tmp_path / "signer.yaml").write_text(text)
    with pytest.raises(CallerError, match="there is no store"):
        rewrap(tmp_path / "enclave.yaml", tmp_path / "signer.yaml")
