"""Stores that cannot be used, or not wholly: a typed error that says what to do, and whatever is whole still serves."""

from __future__ import annotations

import contextlib
import pathlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from appliance.coordinator.views import show_all, show_key
from appliance.store import CoordinatorStore, SignerStore
from appliance.store.accepted import Accepted, RequestState
from appliance.store.failures import Damaged, StoreFailed
from appliance.store.rows import Page
from enclave import wire
from policies.errors import CallerError
from tests.fakes.certificates import Dealer
from tests.fakes.disks import read_only, small_disk
from tests.unit.test_store_signer import WRITER

GOOD, BAD = "key_" + "aa" * 16, "key_" + "bb" * 16


async def filled_signer(path: pathlib.Path, audit: int = 3) -> None:
    store = SignerStore.open(path)
    entries = [wire.AuditEntry(seq, b"body", seq.to_bytes(32, "big"), b"") for seq in range(1, audit + 1)]
    await store.put_records([wire.Record("key", name, 2, name.encode() * 20) for name in (GOOD, BAD)], entries)
    await store.close()


def change(path: pathlib.Path, statement: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


# --- one record or row ---


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("sealed", "text"), ("sealed", 10**12), ("sealed", 0.5), ("sealed", bytes(64 * 1024 + 1)),
        ("version", "two"), ("version", b"\x02"), ("version", -1), ("version", 2**62), ("version", 1.5),
    ],
)  # fmt: skip
async def test_a_damaged_record_is_named_and_the_others_serve(
    tmp_path: pathlib.Path, column: str, value: object
) -> None:
    path = tmp_path / "s.db"
    await filled_signer(path)
    change(path, f"UPDATE records SET {column} = ? WHERE name = ?", value, BAD)
    store = SignerStore.open(path)
    with pytest.raises(Damaged, match=f"record key/{BAD} is damaged .*restore it from a copy of this store") as caught:
        store.record("key", BAD)
    assert "nothing else is affected" in str(caught.value)
    found = store.record("key", GOOD)
    assert found is not None
    assert found.sealed == GOOD.encode() * 20
    await store.close()


@pytest.mark.parametrize(("column", "value"), [("sealed", "text"), ("version", "two"), ("version", 2**62)])
async def test_a_damaged_record_is_replaced_and_a_whole_newer_one_is_not(
    tmp_path: pathlib.Path, column: str, value: object
) -> None:
    """The enclave was told of no record, so it begins again at version 1."""
    path = tmp_path / "s.db"
    store = SignerStore.open(path)
    whole = wire.Record("prss", "prss", 7, b"whole")
    await store.put_records([whole, wire.Record("peers", "peers", 7, b"old")])
    await store.close()
    change(path, f"UPDATE records SET {column} = ? WHERE name = 'peers'", value)
    store = SignerStore.open(path)
    first = wire.Record("peers", "peers", 1, b"new")
    await store.put_records([first])
    with pytest.raises(CallerError, match="a newer version is stored"):
        await store.put_records([wire.Record("prss", "prss", 1, b"new")])
    await store.close()
    store = SignerStore.open(path)
    assert (store.record("peers", "peers"), store.record("prss", "prss")) == (first, whole)
    await store.close()


@pytest.mark.parametrize("value", ["text" * 8, 7, b"short", None])
async def test_an_audit_chain_without_a_readable_end_is_not_continued(tmp_path: pathlib.Path, value: object) -> None:
    path = tmp_path / "s.db"
    await filled_signer(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("DROP TRIGGER audit_no_update")
        if value is None:
            # SQLite does not let a NOT NULL column go empty, but a disk does.
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'BLOB NOT NULL', 'BLOB')")
    change_unchecked(path, value)
    with pytest.raises(StoreFailed, match=r"the last audit entry is damaged .*restore it from a backup"):
        SignerStore.open(path)


def change_unchecked(path: pathlib.Path, value: object) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE audit SET hash = ? WHERE seq = 3", (value,))


async def filled_coordinator(path: pathlib.Path, dealer: Dealer) -> None:
    from appliance.store.certificates import encode_certificate

    store = CoordinatorStore.open(path)
    for number, name in enumerate((GOOD, BAD)):
        accepted = Accepted(
            id=f"kreq_{number}", external_id=f"e{number}", path="/v1/keys", body=b"{}", jws="a..b", created_at_ms=1,
            digest=bytes(32),
        )  # fmt: skip
        await store.keys.accept(accepted, "label")
        certificate = encode_certificate(tuple(dealer.certificate()))
        await store.keys.certify(accepted.id, name, certificate, 7)
    await store.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("certificate", b"junk"), ("certificate", b""), ("certificate", b"\x90"), ("certificate", "text"),
        ("certificate", 10**15), ("state", "Half"), ("state", 5), ("created_at_ms", "late"), ("created_at_ms", 2**62),
        ("label", b"bytes"), ("activated", "all"), ("body", 1.5),
    ],
)  # fmt: skip
async def test_a_damaged_key_row_is_unavailable_alone(tmp_path: pathlib.Path, column: str, value: object) -> None:
    path, dealer = tmp_path / "c.db", Dealer.make()
    await filled_coordinator(path, dealer)
    change(path, f"UPDATE keys SET {column} = ? WHERE key_id = ?", value, BAD)
    store = CoordinatorStore.open(path)
    with pytest.raises(Damaged, match="kreq_1|" + BAD):
        shown_key(store, dealer)
    good = store.keys.get(GOOD)
    assert good is not None
    shown = show_all(store.keys.after(0, 100).rows, partial(show_key, roster=dealer.roster))
    assert [key.request_id for key in shown] == ["kreq_0"]
    await store.close()


def shown_key(store: CoordinatorStore, dealer: Dealer) -> None:
    row = store.keys.get(BAD)
    assert row is not None
    show_key(row, dealer.roster)


def a_request(number: int) -> Accepted:
    return Accepted(
        id=f"r_{number}", external_id=f"e{number}", path="/v1/keys", body=b"", jws="", created_at_ms=1, digest=b""
    )


@pytest.mark.parametrize("table", ["keys", "signatures", "signature_batches"])
async def test_damaged_rows_do_not_end_a_list_early(tmp_path: pathlib.Path, table: str) -> None:
    """A full page with a damaged row in it had no cursor, as if it were the last."""
    path = tmp_path / "c.db"
    store = CoordinatorStore.open(path)
    accept: Callable[[Accepted], Awaitable[object]] = {
        "keys": lambda request: store.keys.accept(request, "label"),
        "signatures": lambda request: store.signatures.accept(request, GOOD, "Hash", ()),
        "signature_batches": lambda request: store.batches.accept(request, GOOD, 3),
    }[table]
    for number in range(1, 8):
        await accept(a_request(number))
    await store.close()
    change(path, f"UPDATE {table} SET created_at_ms = 'late' WHERE seq IN (2, 5, 6)")
    store = CoordinatorStore.open(path)
    after: Callable[[int], Page[RequestState]] = {
        "keys": lambda seq: store.keys.after(seq, 2),
        "signatures": lambda seq: store.signatures.after(GOOD, seq, 2),
        "signature_batches": lambda seq: store.batches.after(GOOD, seq, 2),
    }[table]
    pages, seq = [], 0
    while seq is not None:
        page = after(seq)
        pages.append([row.id for row in page.rows])
        seq = page.following
    assert pages == [["r_1"], ["r_3", "r_4"], [], ["r_7"]]
    await store.close()


async def test_a_list_of_signatures_reads_nothing_of_the_requests(tmp_path: pathlib.Path) -> None:
    """A page of whole rows could hold 10 MB, of which nothing was shown."""
    path = tmp_path / "c.db"
    store = CoordinatorStore.open(path)
    await store.signatures.accept(a_request(1), GOOD, "Hash", ())
    await store.close()
    change(path, "UPDATE signatures SET body = 7, jws = x'ff'")
    store = CoordinatorStore.open(path)
    (row,) = store.signatures.after(GOOD, 0, 2).rows
    assert not {"body", "jws", "path"} & {*row.__struct_fields__}
    with pytest.raises(Damaged):
        store.signatures.get("r_1")
    await store.close()


# --- the whole file ---


def flipped(data: bytes, source: random.Random) -> bytes:
    """`data` with a handful of damaged bytes, now and then cut short."""
    damaged = bytearray(data)
    for _ in range(source.choice([1, 4, 64])):
        damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
    return bytes(damaged[: source.randrange(len(damaged))] if source.random() < 0.2 else damaged)


async def use_signer(path: pathlib.Path) -> None:
    store = SignerStore.open(path)
    try:
        for kind, name in (("key", GOOD), ("key", BAD), ("prss", "prss")):
            with contextlib.suppress(Damaged):
                store.record(kind, name)
        with contextlib.suppress(Damaged):
            store.audit_entries()
        with contextlib.suppress(CallerError):
            await store.append_audit([wire.AuditEntry(store.audit_head()[0] + 1, b"x", bytes(32), b"")])
    finally:
        await store.close()


async def use_coordinator(path: pathlib.Path) -> None:
    store = CoordinatorStore.open(path)
    roster = Dealer.make().roster
    try:
        show_all(store.keys.after(0, 100).rows, partial(show_key, roster=roster))
        store.signatures.unfinished()
        store.keys.unfinished()
        store.batches.unfinished()
        accepted = Accepted(
            id="kreq_9", external_id="e9", path="/v1/keys", body=b"", jws="", created_at_ms=1, digest=b""
        )
        await store.keys.accept(accepted, "label")
    finally:
        await store.close()


@pytest.mark.parametrize("seed", range(40))
async def test_a_file_with_flipped_bits_is_read_or_refused_with_a_remedy(tmp_path: pathlib.Path, seed: int) -> None:
    source = random.Random(seed)
    signer, coordinator = tmp_path / "s.db", tmp_path / "c.db"
    await filled_signer(signer, audit=40)
    await filled_coordinator(coordinator, Dealer.make())
    for path, use in ((signer, use_signer), (coordinator, use_coordinator)):
        path.write_bytes(flipped(path.read_bytes(), source))
        with contextlib.suppress(StoreFailed):
            await use(path)


async def test_a_schema_that_is_no_text_any_more_is_refused_with_a_remedy(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s.db"
    await SignerStore.open(path).close()
    data = path.read_bytes()
    assert b"tableaudit" in data
    path.write_bytes(
        data.replace(b"tableaudit", b"table\xe9udit").replace(b"CREATE TABLE audit", b"CREXTE TABLE audit")
    )
    with pytest.raises(StoreFailed, match="restore it from a backup"):
        SignerStore.open(path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.999])
def test_a_truncated_log_loses_its_end_and_nothing_before(tmp_path: pathlib.Path, kept: float) -> None:
    path = tmp_path / "s.db"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdout is not None
    for _ in range(60):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    log = path.with_name("s.db-wal")
    size = int(log.stat().st_size * kept)
    with log.open("r+b") as file:
        file.truncate(size)
    store = SignerStore.open(path)
    entries = store.audit_entries(limit=10_000)
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    for entry in entries:
        assert store.record("key", f"key_{entry.seq}") is not None
    store._database.close()


READ_ONLY = "cannot be written|can be written|read-only|Read-only"


@pytest.mark.parametrize("store", [SignerStore, CoordinatorStore])
@pytest.mark.parametrize("there", [False, True], ids=["new", "existing"])
async def test_a_read_only_file_system_is_said(
    tmp_path: pathlib.Path, store: type[SignerStore | CoordinatorStore], there: bool
) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    if there:
        await store.open(directory / "x.db").close()
    with read_only(directory), pytest.raises(StoreFailed, match=READ_ONLY) as caught:
        store.open(directory / "x.db")
    assert caught.value.remedy
    await store.open(directory / "x.db").close()


def immutable(path: pathlib.Path) -> Callable[[], object]:
    """Root's writes fail too. Returns what undoes it; skips where the file system knows no such thing."""
    done = subprocess.run(["chattr", "+i", path], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("chattr +i is not possible here")
    return lambda: subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.skipif(shutil.which("chattr") is None, reason="chattr is not installed")
async def test_a_file_that_may_not_be_written_is_said(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s.db"
    await filled_signer(path)
    undo = immutable(path)
    try:
        with pytest.raises(StoreFailed, match=r"Operation not permitted.*can be written"):
            SignerStore.open(path)
    finally:
        undo()
    await use_signer(path)


def test_a_disk_without_room_for_a_new_store_is_said(tmp_path: pathlib.Path) -> None:
    with small_disk(tmp_path / "state", 64) as disk:
        disk.fill()
        with pytest.raises(StoreFailed, match=r"free space|has room"):
            SignerStore.open(disk.path / "s.db")
