"""Keys in the coordinator's store: what was asked, where it stands, and the certificate once there is one."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Column, Connection, Integer, LargeBinary, Select, String, Table, select, update

from appliance.store.accepted import UNFINISHED, Accepted, accept, metadata, request_columns, request_row
from appliance.store.database import Database
from appliance.store.failures import DATABASE_ERRORS, store_failure
from appliance.store.statements import Statement, insertion, parameter
from appliance.store.writer import GroupCommitWriter
from policies.errors import Bug

keys = Table(
    "keys",
    metadata,
    *request_columns(),
    Column("label", String, nullable=False),
    Column("key_id", String, unique=True),
    Column("certificate", LargeBinary),
    Column("activated", Integer, nullable=False),
)


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A requested key. Bit `i-1` of `activated`: signer `i` has said that it can use it."""

    seq: int
    id: str
    external_id: str
    path: str
    body: bytes
    jws: str
    state: str
    created_at_ms: int
    reason_code: str
    reason_message: str
    reason_signer: str
    label: str
    key_id: str | None
    certificate: bytes | None
    activated: int


_INSERT_KEY = insertion(keys, without=("seq", "key_id", "certificate"))
_KEY_BY_ID = Statement(select(keys).where(keys.c.id == parameter("row")))
_KEY_BY_KEY_ID = Statement(select(keys).where(keys.c.key_id == parameter("row")))


class Keys:
    """The keys' part of `CoordinatorStore`. Writes return once they are on disk."""

    def __init__(self, database: Database, writer: GroupCommitWriter) -> None:
        self._database, self._writer = database, writer

    async def accept(self, request: Accepted, label: str) -> tuple[str, bool]:
        """Commit a key's request. Returns its id, and False where the external id stood for it already.

        Raises `ExternalIdTaken`; `Unavailable` where the disk does not take it.
        """
        values = {**request_row(request), "label": label, "activated": 0}
        return await self._writer.submit(lambda connection: accept(connection, request, _INSERT_KEY, values))

    async def certify(self, request_id: str, key_id: str, certificate: bytes, activated: int) -> None:
        """The key is there: its verified certificate and who can use it. State `Active`."""
        statement = (
            update(keys)
            .where(keys.c.id == request_id, keys.c.state.in_(UNFINISHED))
            .values(state="Active", key_id=key_id, certificate=certificate, activated=activated)
        )
        await self._change(statement, f"key request {request_id}")

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

    def requested(self, request_id: str) -> KeyRow | None:
        """A key by the id of its request. Raises `Unavailable`, as all reads do."""
        return self._one(_KEY_BY_ID, request_id)

    def get(self, key_id: str) -> KeyRow | None:
        """A key by its key id, which it has once it is certified."""
        return self._one(_KEY_BY_KEY_ID, key_id)

    def after(self, seq: int, limit: int) -> list[KeyRow]:
        """At most `limit` keys that were requested after number `seq`, oldest first."""
        return self._many(select(keys).where(keys.c.seq > seq).order_by(keys.c.seq).limit(limit))

    def to_activate(self, index: int, limit: int) -> list[KeyRow]:
        """At most `limit` certified keys that signer `index` has not said it can use, newest first."""
        missing = keys.c.activated.bitwise_and(1 << (index - 1)) == 0
        query = select(keys).where(keys.c.key_id.is_not(None), missing)
        return self._many(query.order_by(keys.c.seq.desc()).limit(limit))

    def unfinished(self) -> list[KeyRow]:
        """Requests for keys that have not ended."""
        return self._many(select(keys).where(keys.c.state.in_(UNFINISHED)).order_by(keys.c.seq))

    async def _change(self, statement: Any, what: str) -> None:
        def write(connection: Connection) -> None:
            if connection.execute(statement).rowcount != 1:
                raise Bug(f"{what} is not there, or has ended already")

        await self._writer.submit(write)

    def _one(self, query: Statement, row_id: str) -> KeyRow | None:
        try:
            row = query.one(self._database.reader, {"row": row_id})
        except DATABASE_ERRORS as error:
            raise store_failure(self._database.path, error) from error
        return None if row is None else KeyRow(**row)

    def _many(self, query: Select[Any]) -> list[KeyRow]:
        try:
            rows = self._database.reader.execute(query).all()
        except DATABASE_ERRORS as error:
            raise store_failure(self._database.path, error) from error
        return [KeyRow(**row._mapping) for row in rows]
