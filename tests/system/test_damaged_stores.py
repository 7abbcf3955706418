"""Damaged stores under real processes: one damaged record costs one key; a store that cannot be used ends its process
with one line that says what to do."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from appliance.api.client import CertifiedKey, Failed
from appliance.localnet import LocalNet
from enclave import wire
from enclave.hsm.records import SealedRecord
from policies.requests import Hash
from tests.fakes.disks import read_only

POOL = (60, 120, 60)
pytestmark = pytest.mark.timeout(170)


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    with LocalNet(pool=POOL) as made:
        made.wait_for_pool(POOL[0])
        yield made


@pytest.fixture(scope="module")
def keys(net: LocalNet) -> tuple[CertifiedKey, CertifiedKey]:
    with net.client() as client:
        return client.create_key("test/damaged", "damaged"), client.create_key("test/whole", "whole")


def flipped(record: SealedRecord, field: str) -> bytes:
    """The record with one bit of one field changed, in its canonical encoding."""
    value = getattr(record, field)
    return wire.encode(msgspec.structs.replace(record, **{field: value[:-1] + bytes([value[-1] ^ 1])}))


DAMAGE: dict[str, Callable[[SealedRecord, int], tuple[object, object]]] = {
    "a bit of the payload": lambda record, version: (flipped(record, "payload"), version),
    "a bit of the sealed key": lambda record, version: (flipped(record, "sealed_key"), version),
    "a bit of its head": lambda record, version: (b"\x97" + wire.encode(record)[1:], version),
    "its version": lambda record, version: (wire.encode(record), version + 2),
    "its type": lambda record, version: ("text", version),
}


# Each costs two restarts; the others are in `make soak`.
QUICK = ("a bit of the payload", "a bit of its head", "its type")


@pytest.mark.parametrize(
    "damage", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DAMAGE]
)
def test_a_damaged_record_costs_its_key_alone(
    net: LocalNet, keys: tuple[CertifiedKey, CertifiedKey], damage: str
) -> None:
    damaged, whole = keys
    store = net.plan.signer(1) / "state" / "signer.db"
    net.processes["signer-1"].stop()
    with closing(sqlite3.connect(store)) as connection, connection:
        (sealed, version) = connection.execute(
            "SELECT sealed, version FROM records WHERE name = ?", (damaged.id,)
        ).fetchone()
        changed = DAMAGE[damage](wire.decode(sealed, SealedRecord), version)
        connection.execute("UPDATE records SET sealed = ?, version = ? WHERE name = ?", (*changed, damaged.id))
    restart(net)
    name = damage.replace(" ", "-")
    try:
        with net.client() as client:
            assert client.sign(whole.id, Hash("0x" + "11" * 32, f"whole-{name}")).signature is not None
            with pytest.raises(Failed) as failed:
                client.sign(damaged.id, Hash("0x" + "11" * 32, f"damaged-{name}"))
    finally:
        net.processes["signer-1"].stop()
        with closing(sqlite3.connect(store)) as connection, connection:
            restored = (sealed, version, damaged.id)
            connection.execute("UPDATE records SET sealed = ?, version = ? WHERE name = ?", restored)
        restart(net)
    reason = failed.value.reason
    assert damaged.id in reason
    if "see its log" in reason:
        reason = net.log("signer-1").read_text()
    assert "restore it from a copy of this s" in reason
    with net.client() as client:
        assert client.sign(damaged.id, Hash("0x" + "22" * 32, f"restored-{name}")).signature is not None


def restart(net: LocalNet) -> None:
    """Start the first signer again, until all are linked."""

    def ready() -> bool:
        health = net.health()
        return health is not None and health.status == "ready"

    net.restart("signer-1")
    net.wait_for(ready, "signer-1 to be back")


def run(kind: str, directory: Path, state: Path) -> subprocess.CompletedProcess[str]:
    """A process of `directory` on the store `state`, which is expected to end by itself."""
    text = (directory / f"{kind}.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("state:"))
    config = directory / "other.yaml"
    config.write_text(text.replace(line, f"state: {state}"))
    return subprocess.run(
        [sys.executable, "-I", "-m", "appliance.cli", kind, "run", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("kind", ["signer", "coordinator"])
def test_a_store_that_cannot_be_used_ends_its_process_with_a_remedy(net: LocalNet, tmp_path: Path, kind: str) -> None:
    directory = net.plan.signer(2) if kind == "signer" else net.root / "coordinator"
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"no database at all " * 500)
    newer = tmp_path / "newer.db"
    with closing(sqlite3.connect(newer)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('z9999')")
    expected = {junk: "restore it from a backup", newer: "use the release that wrote it"}
    for state, remedy in expected.items():
        ended = run(kind, directory, state)
        check(ended, remedy)
    held = net.plan.signer(2) / "state" / "signer.db" if kind == "signer" else directory / "state" / "coordinator.db"
    check(run(kind, directory, held), "another process uses it")
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    with read_only(fixed):
        check(run(kind, directory, fixed / "x.db"), "can be written")


def check(ended: subprocess.CompletedProcess[str], remedy: str) -> None:
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    assert remedy in ended.stderr.strip().splitlines()[-1]
