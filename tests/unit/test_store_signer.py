"""The signer's store: newest record wins, the audit chain only grows, what was acknowledged survives kill -9."""

from __future__ import annotations

import asyncio
import pathlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from appliance.store import CoordinatorStore, SignerStore
from appliance.store import accepted as coordinator_schema
from appliance.store import signer as signer_schema
from appliance.store.failures import StoreFailed
from appliance.store.signer import RecordCache
from enclave import wire
from policies.errors import CallerError

KEY = "key_" + "ab" * 16


@pytest.fixture
async def store(tmp_path: pathlib.Path) -> AsyncIterator[SignerStore]:
    made = SignerStore.open(tmp_path / "signer.db")
    yield made
    await made.close()


def record(version: int, sealed: bytes = b"sealed", kind: str = "key", name: str = KEY) -> wire.Record:
    return wire.Record(kind, name, version, sealed)


def entry(seq: int, body: bytes = b"body") -> wire.AuditEntry:
    return wire.AuditEntry(seq, body, seq.to_bytes(32, "big"), b"")


async def test_a_new_store_is_empty(store: SignerStore) -> None:
    assert store.audit_head() == (0, bytes(32))
    assert store.record("prss", "prss") is None


async def test_writes_are_done_in_the_order_of_their_calls_whoever_awaits_them(store: SignerStore) -> None:
    """A record's entries come before those that were said after it: the chain has no gap for a moment."""
    calls = [
        store.put_records([record(1)], [entry(1)]),
        store.append_audit([entry(2)]),
        store.put_records([record(2)], [entry(3)]),
        store.append_audit([entry(4)]),
    ]
    await asyncio.gather(*reversed(calls))
    assert store.audit_head() == (4, entry(4).hash)
    assert store.record("key", KEY) == record(2)


async def test_records_and_audit_are_there_after_reopening(tmp_path: pathlib.Path) -> None:
    store = SignerStore.open(tmp_path / "s.db")
    prss = record(3, kind="prss", name="prss")
    await store.put_records([record(2), prss], [entry(1), entry(2)])
    await store.close()
    store = SignerStore.open(tmp_path / "s.db")
    assert store.record("key", KEY) == record(2)
    assert store.record("prss", "prss") == prss
    assert store.record("key", "prss") is None
    assert store.audit_head() == (2, entry(2).hash)
    assert store.audit_entries() == [entry(1), entry(2)]
    assert store.audit_entries(after_seq=1, limit=1) == [entry(2)]
    await store.close()


async def test_a_newer_version_replaces_the_older(store: SignerStore) -> None:
    await store.put_records([record(2)])
    await store.put_records([record(3, b"newer")])
    assert store.record("key", KEY) == record(3, b"newer")
    assert store.record_count() == 1


@pytest.mark.parametrize(
    ("stale", "why"),
    [(record(1), "a newer version is stored"), (record(2, b"other"), "same version with other content")],
)
async def test_an_older_version_never_replaces_a_newer_and_nothing_else_is_written(
    tmp_path: pathlib.Path, stale: wire.Record, why: str
) -> None:
    store = SignerStore.open(tmp_path / "s.db")
    await store.put_records([record(2)])
    with pytest.raises(CallerError, match=why):
        await store.put_records([record(9, kind="prss", name="prss"), stale], [entry(1)])
    await store.close()
    store = SignerStore.open(tmp_path / "s.db")
    assert store.record("key", KEY) == record(2)
    assert store.record("prss", "prss") is None
    assert store.audit_head() == (0, bytes(32))
    await store.close()


async def test_the_same_record_again_is_no_error(store: SignerStore) -> None:
    await store.put_records([record(2)])
    await store.put_records([record(2)])
    assert store.record("key", KEY) == record(2)


async def test_audit_entries_that_are_sent_again_are_passed_over(store: SignerStore) -> None:
    await store.append_audit([entry(1), entry(2)])
    await store.append_audit([entry(1), entry(2), entry(3)])
    assert [e.seq for e in store.audit_entries()] == [1, 2, 3]
    assert store.audit_head() == (3, entry(3).hash)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([entry(4)], "entry 4 does not follow entry 2"),
        ([entry(3), entry(5)], "entry 5 does not follow entry 3"),
        ([entry(3), entry(3)], "entry 3 does not follow entry 3"),
        ([entry(2, b"rewritten")], "the chain has forked"),
    ],
)
async def test_an_audit_chain_with_a_gap_or_a_fork_is_refused(
    store: SignerStore, entries: list[wire.AuditEntry], why: str
) -> None:
    await store.append_audit([entry(1), entry(2)])
    with pytest.raises(CallerError, match=why):
        await store.append_audit(entries)
    assert store.audit_entries() == [entry(1), entry(2)]
    assert store.audit_head() == (2, entry(2).hash)


@pytest.mark.parametrize("statement", ["DELETE FROM audit", "UPDATE audit SET body = x'00'"])
async def test_the_database_itself_refuses_to_alter_the_audit_chain(
    store: SignerStore, tmp_path: pathlib.Path, statement: str
) -> None:
    await store.append_audit([entry(1)])
    with (
        sqlite3.connect(tmp_path / "signer.db") as connection,
        pytest.raises(sqlite3.IntegrityError, match="only grows"),
    ):
        connection.execute(statement)


def test_the_cache_keeps_its_bound_and_never_goes_back() -> None:
    cache = RecordCache(max_bytes=100)
    for i in range(10):
        cache.put(record(1, bytes(40), name=str(i)))
    assert [i for i in range(10) if cache.get("key", str(i))] == [8, 9]
    cache.put(record(5, b"new", name="9"))
    cache.put(record(4, b"old", name="9"))
    assert cache.get("key", "9") == record(5, b"new", name="9")


# --- the file ---


async def test_the_file_is_private_durable_and_used_by_one_process(store: SignerStore, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "signer.db"
    assert path.stat().st_mode & 0o777 == 0o600
    with store._database.writer.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    with pytest.raises(StoreFailed, match="another process uses it"):
        SignerStore.open(path)


@pytest.mark.parametrize(
    ("store_type", "metadata"),
    [(SignerStore, signer_schema.metadata), (CoordinatorStore, coordinator_schema.metadata)],
)
async def test_migrations_from_empty_make_the_schema_that_the_code_uses(
    tmp_path: pathlib.Path, store_type: type[SignerStore | CoordinatorStore], metadata: object
) -> None:
    store = store_type.open(tmp_path / "x.db")
    with store._database.writer.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() is not None
    await store.close()


async def test_a_file_of_a_newer_release_is_refused(tmp_path: pathlib.Path) -> None:
    await SignerStore.open(tmp_path / "s.db").close()
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 's9999'")
    with pytest.raises(StoreFailed, match="use the release that wrote it"):
        SignerStore.open(tmp_path / "s.db")


def test_a_file_that_is_no_database_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "s.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreFailed, match="restore it from a backup"):
        SignerStore.open(tmp_path / "s.db")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreFailed, match="check that the directory exists"):
        SignerStore.open(tmp_path / "file" / "s.db")


WRITER = """
import asyncio, pathlib, sys
from appliance.store import SignerStore
from enclave import wire

async def main():
    store = SignerStore.open(pathlib.Path(sys.argv[1]))
    seq = 0
    async def write():
        nonlocal seq
        while True:
            seq += 1
            mine = seq
            entry = wire.AuditEntry(mine, b"decision %d" % mine, mine.to_bytes(32, "big"), b"")
            record = wire.Record("key", "key_%d" % mine, 1, b"%d" % mine)
            await store.put_records([record], [entry])
            print(mine, flush=True)
    await asyncio.gather(*(write() for _ in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 50, 300])
def test_whatever_was_acknowledged_survives_kill_minus_nine(tmp_path: pathlib.Path, acknowledged: int) -> None:
    path = tmp_path / "s.db"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(acknowledged)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().splitlines()]
    process.wait()
    store = SignerStore.open(path)
    seqs = [e.seq for e in store.audit_entries(limit=100_000)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert len(seqs) >= max(said)
    for seq in said:
        found = store.record("key", f"key_{seq}")
        assert found is not None
        assert found.sealed == b"%d" % seq
    assert store.audit_head()[0] == len(seqs)
