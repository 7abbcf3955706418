"""Keys in the coordinator's store: what was asked, where it stands, and the certificate once there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Column, Connection, Index, Integer, LargeBinary, String, Table, delete, select, update
from sqlalchemy.dialects.sqlite import insert

from appliance.store.accepted import (
    UNFINISHED,
    Acceptance,
    Accepted,
    RequestRow,
    accept,
    metadata,
    request_columns,
    request_row,
    restarting,
)
from appliance.store.database import Database
from appliance.store.rows import Page, fetch, fetch_page, parse_row, parse_rows
from appliance.store.statements import Statement, insertion, parameter
from appliance.store.writer import GroupCommitWriter
from policies.errors import Bug, CallerError
from policies.requests import KEYS_PATH

keys = Table(
    "keys",
    metadata,
    *request_columns(),
    Column("label", String, nullable=False),
    Column("key_id", String, unique=True),
    Column("certificate", LargeBinary),
    Column("activated", Integer, nullable=False),
    Index("keys_activated", "activated", "key_id"),
)


key_sources = Table(
    "key_sources",
    metadata,
    Column("signer", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, nullable=False),
    Column("key_id", String, nullable=False),
)

# Before the id of a key that was learned from signers, in place of an external id: none begins so.
LEARNED = "@"


class LearnedKey(msgspec.Struct, frozen=True):
    """A key that was made through another coordinator, with its verified certificate."""

    key_id: str
    label: str
    certificate: bytes


class KeyRow(RequestRow, frozen=True, kw_only=True):
    """A requested key. Bit `i-1` of `activated`: signer `i` has said that it can use it."""

    label: str
    key_id: str | None
    certificate: bytes | None
    activated: int

    @property
    def learned(self) -> bool:
        """Whether the key was made through another coordinator: its external id is not known here."""
        return self.external_id.startswith(LEARNED)


class KeyTaken(CallerError):
    """The key is another request's."""


class _Source(msgspec.Struct, frozen=True):
    """A row of `key_sources`."""

    signer: int
    seq: int
    key_id: str


_RESTART_KEY = restarting(keys)
_INSERT_KEY = insertion(keys, without=("seq", "key_id", "certificate"))
_LEARN_KEY = Statement(
    insert(keys).values({c.name: parameter(c.name) for c in keys.c if c.name != "seq"}).on_conflict_do_nothing()
)
_ADD_ACTIVATED = Statement(
    update(keys)
    .where(keys.c.key_id == parameter("key"))
    .values(activated=keys.c.activated.bitwise_or(parameter("bits")))
)
_FORGET_LEARNED = Statement(
    delete(keys).where(keys.c.key_id == parameter("key"), keys.c.external_id == parameter("mark"))
)
_READ_UNTIL = insert(key_sources).values({c.name: parameter(c.name) for c in key_sources.c})
_NOTE_READ = Statement(
    _READ_UNTIL.on_conflict_do_update(
        index_elements=["signer"], set_={"seq": _READ_UNTIL.excluded.seq, "key_id": _READ_UNTIL.excluded.key_id}
    )
)
_SOURCE = Statement(select(key_sources).where(key_sources.c.signer == parameter("row")))
_KEY_BY_ID = Statement(select(keys).where(keys.c.id == parameter("row")))
_KEY_BY_KEY_ID = Statement(select(keys).where(keys.c.key_id == parameter("row")))
_KEYS_AFTER = Statement(
    select(keys).where(keys.c.seq > parameter("after")).order_by(keys.c.seq).limit(parameter("most"))
)
_KEYS_TO_ACTIVATE = Statement(
    select(keys)
    .where(
        # What is all signers' is passed over in the index: there can be very many.
        keys.c.activated < parameter("everybody"),
        keys.c.key_id.is_not(None),
        keys.c.activated.bitwise_and(parameter("bit")) == 0,
    )
    # Not by the bare column, or SQLite reads the table in its order instead of the index.
    .order_by((keys.c.seq + 0).desc())
    .limit(parameter("most"))
)
_UNFINISHED_KEYS = Statement(select(keys).where(keys.c.state.in_(UNFINISHED)).order_by(keys.c.seq))


class Keys:
    """The keys' part of `CoordinatorStore`. Writes return once they are on disk."""

    def __init__(self, database: Database, writer: GroupCommitWriter) -> None:
        self._database, self._writer = database, writer

    async def accept(self, request: Accepted, label: str) -> Acceptance:
        """Commit a key's request. Raises `ExternalIdTaken`; `Unavailable` where the disk does not take it."""
        values = {**request_row(request), "label": label, "activated": 0}
        return await self._writer.submit(
            lambda connection: accept(connection, request, _INSERT_KEY, _RESTART_KEY, values)
        )

    async def certify(self, request_id: str, key_id: str, certificate: bytes, activated: int) -> None:
        """The key is there: its verified certificate and who can use it. State `Active`. Raises `KeyTaken`."""
        statement = (
            update(keys)
            .where(keys.c.id == request_id, keys.c.state.in_(UNFINISHED))
            .values(state="Active", key_id=key_id, certificate=certificate, activated=activated)
        )

        def write(connection: Connection) -> None:
            # A signer may have listed it before its request was done.
            _FORGET_LEARNED.run(connection, {"key": key_id, "mark": LEARNED + key_id})
            if _KEY_BY_KEY_ID.one(connection, {"row": key_id}) is not None:
                raise KeyTaken(f"{key_id} is the key of another request")
            if connection.execute(statement).rowcount != 1:
                raise Bug(f"key request {request_id} is not there, or has ended already")

        await self._writer.submit(write)

    async def learn(
        self, signer: int, new: Sequence[LearnedKey], known: Sequence[str], until: tuple[int, str], now_ms: int
    ) -> None:
        """Keys that a signer has listed: `new` ones, and ids of `known` ones; its list has been read `until` a number
        and the id of the key that has it."""
        bits = 1 << (signer - 1)
        rows = [_learned_row(key, now_ms) for key in new]
        ids = [*known, *(key.key_id for key in new)]

        def write(connection: Connection) -> None:
            for row in rows:
                _LEARN_KEY.run(connection, row)
            for key_id in ids:
                _ADD_ACTIVATED.run(connection, {"key": key_id, "bits": bits})
            _NOTE_READ.run(connection, {"signer": signer, "seq": until[0], "key_id": until[1]})

        await self._writer.submit(write)

    async def end(self, request_id: str, state: str, code: str, message: str, signer: str) -> None:
        """The key will not come: `Failed` or `Rejected`, and why."""
        statement = (
            update(keys)
            .where(keys.c.id == request_id, keys.c.state.in_(UNFINISHED))
            .values(state=state, reason_code=code, reason_message=message, reason_signer=signer)
        )
        await self._change(statement, f"key request {request_id}")

    async def add_activated(self, key_id: str, bits: int) -> None:
        """More signers have said that they can use the key."""
        statement = update(keys).where(keys.c.key_id == key_id).values(activated=keys.c.activated.bitwise_or(bits))
        await self._change(statement, f"key {key_id}")

    def read_until(self, signer: int) -> tuple[int, str]:
        """Number and id of the last key of a signer's list that was learned; 0 and empty for none."""
        rows = fetch(self._database, _SOURCE, {"row": signer})
        if not rows:
            return 0, ""
        source = parse_row(rows[0], _Source, f"how far the keys of signer {signer} were learned")
        return source.seq, source.key_id

    def requested(self, request_id: str) -> KeyRow | None:
        """A key by the id of its request. Raises `Unavailable`, as all reads do."""
        return self._one(_KEY_BY_ID, request_id)

    def get(self, key_id: str) -> KeyRow | None:
        """A key by its key id, which it has once it is certified."""
        return self._one(_KEY_BY_KEY_ID, key_id)

    def after(self, seq: int, limit: int) -> Page[KeyRow]:
        """At most `limit` keys that were requested after number `seq`, oldest first."""
        return fetch_page(self._database, _KEYS_AFTER, {"after": seq}, limit, KeyRow)

    def to_activate(self, index: int, signers: int, limit: int) -> list[KeyRow]:
        """At most `limit` certified keys that signer `index` of so many `signers` has not said it can use, newest
        first."""
        values = {"bit": 1 << (index - 1), "everybody": (1 << signers) - 1, "most": limit}
        return parse_rows(fetch(self._database, _KEYS_TO_ACTIVATE, values), KeyRow)

    def unfinished(self) -> list[KeyRow]:
        """Requests for keys that have not ended."""
        return parse_rows(fetch(self._database, _UNFINISHED_KEYS, {}), KeyRow)

    async def _change(self, statement: Any, what: str) -> None:
        def write(connection: Connection) -> None:
            if connection.execute(statement).rowcount != 1:
                raise Bug(f"{what} is not there, or has ended already")

        await self._writer.submit(write)

    def _one(self, query: Statement, row_id: str) -> KeyRow | None:
        rows = fetch(self._database, query, {"row": row_id})
        return parse_row(rows[0], KeyRow, row_id) if rows else None


def _learned_row(key: LearnedKey, now_ms: int) -> dict[str, object]:
    return {
        "id": "kreq_" + key.key_id.removeprefix("key_"),
        "external_id": LEARNED + key.key_id,
        "path": KEYS_PATH,
        "body": b"",
        "jws": "",
        "state": "Active",
        "created_at_ms": now_ms,
        "reason_code": "",
        "reason_message": "",
        "reason_signer": "",
        "label": key.label,
        "key_id": key.key_id,
        "certificate": key.certificate,
        "activated": 0,
    }
