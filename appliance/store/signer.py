"""The signer's store: sealed records, newest version of each, and the audit chain, which only grows."""

from __future__ import annotations

import asyncio
import pathlib
from collections import OrderedDict
from collections.abc import Sequence

import msgspec
import structlog
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError

from appliance.durations import Durations
from appliance.store.answers import AnswerStore, answers_table
from appliance.store.certificates import Certificate, Certificates, certificates_table
from appliance.store.database import Database
from appliance.store.failures import RESTORE_REMEDY, Damaged, StoreFailed, store_failure
from appliance.store.rows import fetch, parse_row
from appliance.store.statements import Statement, insertion, parameter
from appliance.store.writer import GroupCommitWriter
from enclave import wire
from policies.errors import CallerError, Unavailable

MAX_CACHED_BYTES = 32 * 1024 * 1024
EMPTY_HEAD = (0, bytes(32))

log = structlog.get_logger()
metadata = MetaData()

records = Table(
    "records",
    metadata,
    Column("kind", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("head_signature", LargeBinary, nullable=False),
    CheckConstraint("length(hash) = 32", name="audit_hash_length"),
)

_CERTIFICATES = certificates_table(metadata)
_ANSWERS = answers_table(metadata)

_SELECT_RECORD = select(records.c.version, records.c.sealed).where(
    records.c.kind == bindparam("kind"), records.c.name == bindparam("name")
)
_READ_RECORD = Statement(
    select(records.c.version, records.c.sealed).where(
        records.c.kind == parameter("kind"), records.c.name == parameter("name")
    )
)
_READ_RECORDS = Statement(
    select(records)
    .where(tuple_(records.c.kind, records.c.name) > tuple_(parameter("kind"), parameter("name")))
    .order_by(records.c.kind, records.c.name)
    .limit(parameter("most"))
)
_RESEAL = Statement(
    update(records)
    .where(
        records.c.kind == parameter("kind"),
        records.c.name == parameter("name"),
        records.c.version == parameter("version"),
        records.c.sealed == parameter("sealed"),
    )
    .values(sealed=parameter("new"))
)
_UPSERT_RECORD = insert(records)
_UPSERT_RECORD = _UPSERT_RECORD.on_conflict_do_update(
    index_elements=["kind", "name"],
    set_={"version": _UPSERT_RECORD.excluded.version, "sealed": _UPSERT_RECORD.excluded.sealed},
    where=_UPSERT_RECORD.excluded.version > records.c.version,
)
_REPLACE_RECORD = insert(records)
_REPLACE_RECORD = _REPLACE_RECORD.on_conflict_do_update(
    index_elements=["kind", "name"],
    set_={"version": _REPLACE_RECORD.excluded.version, "sealed": _REPLACE_RECORD.excluded.sealed},
)
_INSERT_AUDIT = insertion(audit, without=())
_SELECT_HEAD = Statement(select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1))
_SELECT_ENTRY = select(audit.c.body, audit.c.hash, audit.c.head_signature).where(audit.c.seq == bindparam("seq"))
_SELECT_ENTRIES = Statement(
    select(audit).where(audit.c.seq > parameter("after")).order_by(audit.c.seq).limit(parameter("most"))
)


class _StoredRecord(msgspec.Struct, frozen=True):
    """A row of `records`, with the bounds of `wire.Record`."""

    version: wire.Count
    sealed: wire.SealedBytes


class _StoredEntry(msgspec.Struct, frozen=True):
    """A row of `audit`."""

    seq: wire.Count
    body: bytes
    hash: wire.Bytes32
    head_signature: bytes


class SignerStore:
    """All of it is opaque here. Writes are under way, in the order of their calls, before anybody awaits them, and done
    once they are on disk; reads see what is committed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = GroupCommitWriter(database)
        self._cache = RecordCache(MAX_CACHED_BYTES)
        self.recovery = self._writer.recovery
        self.certificates = Certificates(database, _CERTIFICATES)
        self._answers = AnswerStore(database, _ANSWERS)
        self.audit_head()  # one that is damaged is told at the start

    @classmethod
    def open(cls, path: pathlib.Path) -> SignerStore:
        """Open or create the store at `path`. Raises `StoreFailed`, an `Unavailable`."""
        return cls(Database.open(path, "signer"))

    def put_records(
        self, records: Sequence[wire.Record], audit: Sequence[wire.AuditEntry] = ()
    ) -> asyncio.Future[None]:
        """Commit all of it together. A record replaces an older or a damaged one of its kind and name.

        Done once all is on disk. Raises `CallerError`, and nothing is written, where a newer version, or the same one
        with other content, is stored, or where audit entries do not continue the chain; `Unavailable` where the disk
        does not take it.
        """

        def write(connection: Connection) -> None:
            for record in records:
                _put(connection, record)
            _append(connection, audit)

        def keep(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and done.exception() is None:
                for record in records:
                    self._cache.put(record)

        committed = self._writer.begin(write)
        committed.add_done_callback(keep)
        return committed

    def append_audit(
        self,
        entries: Sequence[wire.AuditEntry],
        certificates: Sequence[Certificate] = (),
        answer: wire.Answer | None = None,
    ) -> asyncio.Future[None]:
        """Commit audit entries; those that are stored already are passed over. With them, certificates of keys that
        are active here, and an answer to a request. Done once all is on disk; raises as `put_records`."""

        def write(connection: Connection) -> None:
            _append(connection, entries)
            self.certificates.write(connection, certificates)
            if answer is not None:
                self._answers.write(connection, answer)

        return self._writer.begin(write)

    def answer(self, name: bytes) -> wire.Answer | None:
        """The newest answer under a request's name: see `AnswerStore.get`."""
        return self._answers.get(name)

    def certificates_after(self, seq: int, key_id: str, limit: int) -> tuple[int, list[tuple[int, Certificate]]]:
        """A page of certificates: see `Certificates.after`."""
        return self.certificates.after(seq, key_id, limit)

    def record(self, kind: wire.RecordKind, name: str) -> wire.Record | None:
        """The stored record of that kind and name. Raises `StoreFailed`; `Damaged` where it is there, but not whole."""
        cached = self._cache.get(kind, name)
        if cached is not None:
            return cached
        rows = fetch(self._database, _READ_RECORD, {"kind": kind, "name": name})
        if not rows:
            return None
        stored = parse_row(rows[0], _StoredRecord, f"record {kind}/{name}")
        record = wire.Record(kind, name, stored.version, stored.sealed)
        self._cache.put(record)
        return record

    def audit_head(self) -> tuple[int, bytes]:
        """Number and hash of the last entry that is on disk: `(0, 32 zero bytes)` for none. Raises `StoreFailed`."""
        return _read_head(self._database)

    def audit_entries(self, after_seq: int = 0, limit: int = 1000) -> list[wire.AuditEntry]:
        """At most `limit` entries after number `after_seq`, in order. Raises `Unavailable`."""
        entries = []
        for row in fetch(self._database, _SELECT_ENTRIES, {"after": after_seq, "most": limit}):
            stored = parse_row(row, _StoredEntry, f"audit entry {row['seq']!r}")
            entries.append(wire.AuditEntry(stored.seq, stored.body, stored.hash, stored.head_signature))
        return entries

    def record_count(self) -> int:
        """How many records are stored. Raises `Unavailable`."""
        try:
            return int(self._database.reader.execute(select(func.count()).select_from(records)).scalar_one())
        except DBAPIError as error:
            raise store_failure(self._database.path, error) from error

    def records_after(self, place: tuple[str, str], limit: int) -> list[wire.Record]:
        """At most `limit` records after that kind and name, in order. Raises `StoreFailed`, `Damaged`."""
        rows = fetch(self._database, _READ_RECORDS, {"kind": place[0], "name": place[1], "most": limit})
        found = []
        for row in rows:
            stored = parse_row({"version": row["version"], "sealed": row["sealed"]}, _StoredRecord, "a record")
            found.append(wire.Record(row["kind"], row["name"], stored.version, stored.sealed))
        return found

    async def replace_seals(self, pairs: Sequence[tuple[wire.Record, bytes]]) -> int:
        """Give each record that is still as it was read its new seal, all in one transaction; how many were.

        Raises `Unavailable`, and nothing is written, where the disk does not take it.
        """

        def write(connection: Connection) -> int:
            return sum(_RESEAL.run(connection, _reseal_values(record, new)).rowcount for record, new in pairs)

        return await self._writer.submit(write)

    @property
    def commit_seconds(self) -> Durations:
        """How long each transaction took to be on disk."""
        return self._writer.commit_seconds

    async def close(self) -> None:
        """Commit what is waiting and close the file."""
        await self._writer.close()
        self._database.close()


class RecordCache:
    """The records used last, up to `max_bytes`. An older version never replaces a newer one."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._records: OrderedDict[tuple[str, str], wire.Record] = OrderedDict()

    def get(self, kind: str, name: str) -> wire.Record | None:
        """The cached record, which counts as used now."""
        record = self._records.get((kind, name))
        if record is not None:
            self._records.move_to_end((kind, name))
        return record

    def put(self, record: wire.Record) -> None:
        """Keep a committed record, dropping the ones used longest ago."""
        place = (record.kind, record.name)
        known = self._records.get(place)
        if known is not None:
            if known.version >= record.version:
                return
            self._bytes -= len(known.sealed)
        self._records[place] = record
        self._records.move_to_end(place)
        self._bytes += len(record.sealed)
        while self._bytes > self._max_bytes and len(self._records) > 1:
            _, dropped = self._records.popitem(last=False)
            self._bytes -= len(dropped.sealed)


def _read_head(database: Database) -> tuple[int, bytes]:
    """Number and hash of the last audit entry. Raises `StoreFailed` where it cannot be read, or is none."""
    rows = fetch(database, _SELECT_HEAD, {})
    if not rows:
        return EMPTY_HEAD
    seq, head = rows[0]["seq"], rows[0]["hash"]
    if not (isinstance(seq, int) and isinstance(head, bytes) and len(head) == len(EMPTY_HEAD[1])):
        raise StoreFailed(database.path, "the last audit entry is damaged", RESTORE_REMEDY, lasting=True)
    return seq, head


def _reseal_values(record: wire.Record, new: bytes) -> dict[str, object]:
    names = {"kind": record.kind, "name": record.name, "version": record.version}
    return {**names, "sealed": record.sealed, "new": new}


def _put(connection: Connection, record: wire.Record) -> None:
    values = {
        "kind": record.kind,
        "name": record.name,
        "version": record.version,
        "sealed": record.sealed,
    }
    if connection.execute(_UPSERT_RECORD, values).rowcount == 1:
        return
    row = connection.execute(_SELECT_RECORD, {"kind": record.kind, "name": record.name}).one()
    try:
        stored = parse_row(
            {"version": row.version, "sealed": row.sealed}, _StoredRecord, f"record {record.kind}/{record.name}"
        )
    except Damaged as error:
        # The enclave was told of none, and counts from the beginning: nobody can ever read what is there.
        log.warning("damaged-record-replaced", reason=str(error)[:512], version=record.version)
        connection.execute(_REPLACE_RECORD, values)
        return
    if (stored.version, stored.sealed) == (record.version, record.sealed):
        return
    what = "the same version with other content" if stored.version == record.version else "a newer version"
    raise CallerError(f"record {record.kind}/{record.name} version {record.version}: {what} is stored")


def _append(connection: Connection, entries: Sequence[wire.AuditEntry]) -> None:
    """Add what continues the chain; pass over what is stored; refuse gaps and other content."""
    if not entries:
        return
    head = _SELECT_HEAD.one(connection, {})
    seq = 0 if head is None else head["seq"]
    new = 0
    for entry in entries:
        if entry.seq <= seq and not new:
            _check_stored(connection, entry)
            continue
        if entry.seq != seq + 1:
            raise CallerError(f"audit entry {entry.seq} does not follow entry {seq}")
        seq, new = entry.seq, new + 1
        values = {"body": entry.body, "hash": entry.hash, "head_signature": entry.head_signature}
        _INSERT_AUDIT.run(connection, {"seq": seq, **values})


def _check_stored(connection: Connection, entry: wire.AuditEntry) -> None:
    row = connection.execute(_SELECT_ENTRY, {"seq": entry.seq}).one_or_none()
    if row is None:
        raise Unavailable(f"audit entry {entry.seq} is missing in the store", "restore it from a backup")
    if (row.body, row.hash, row.head_signature) != (entry.body, entry.hash, entry.head_signature):
        raise CallerError(f"audit entry {entry.seq} differs from the stored one: the chain has forked")
