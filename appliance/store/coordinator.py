"""The coordinator's store: requests for keys and signatures, where they stand, and what external ids stand for.

No secret is here: client requests as they came, certificates, signatures.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    Select,
    String,
    Table,
    select,
    update,
)

from appliance.durations import Durations
from appliance.store.accepted import UNFINISHED, Accepted, accept, metadata, request_columns, request_row
from appliance.store.batches import SignatureBatches
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

signatures = Table(
    "signatures",
    metadata,
    *request_columns(),
    Column("key_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("derivation_path", LargeBinary, nullable=False),
    Column("result", LargeBinary),
    Index("signatures_key", "key_id"),
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


class SignatureRow(msgspec.Struct, frozen=True, kw_only=True):
    """A requested signature. `result`: JSON of the `SignatureValue`; `derivation_path`: JSON array."""

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
    key_id: str
    kind: str
    derivation_path: bytes
    result: bytes | None


R = TypeVar("R", KeyRow, SignatureRow)

_INSERT_KEY = insertion(keys, without=("seq", "key_id", "certificate"))
_INSERT_SIGNATURE = insertion(signatures, without=("seq", "result"))
_KEY_BY_ID = Statement(select(keys).where(keys.c.id == parameter("row")))
_KEY_BY_KEY_ID = Statement(select(keys).where(keys.c.key_id == parameter("row")))
_SIGNATURE_BY_ID = Statement(select(signatures).where(signatures.c.id == parameter("row")))
_UNFINISHED_SIGNATURE = update(signatures).where(
    signatures.c.id == parameter("row"), signatures.c.state.in_(UNFINISHED)
)
_SET_STATE = Statement(_UNFINISHED_SIGNATURE.values(state=parameter("to")))
_FINISH = Statement(_UNFINISHED_SIGNATURE.values(state="Signed", result=parameter("signed")))
_END = Statement(
    _UNFINISHED_SIGNATURE.values(
        state=parameter("to"),
        reason_code=parameter("code"),
        reason_message=parameter("message"),
        reason_signer=parameter("signer"),
    )
)


class CoordinatorStore:
    """Writes return once they are on disk; reads see what is committed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = GroupCommitWriter(database)
        self.batches = SignatureBatches(database, self._writer)

    @classmethod
    def open(cls, path: pathlib.Path) -> CoordinatorStore:
        """Open or create the store at `path`. Raises `StoreFailed`, an `Unavailable`."""
        return cls(Database.open(path, "coordinator"))

    @property
    def commit_seconds(self) -> Durations:
        """How long each transaction took to be on disk."""
        return self._writer.commit_seconds

    @property
    def waiting(self) -> int:
        """Writes that no transaction has taken yet."""
        return self._writer.waiting

    async def close(self) -> None:
        """Commit what is waiting and close the file."""
        await self._writer.close()
        self._database.close()

    # --- acceptance ---

    async def accept_key(self, request: Accepted, label: str) -> tuple[str, bool]:
        """Commit a key's request. Returns its id, and False where the external id stood for it already.

        Raises `ExternalIdTaken`; `Unavailable` where the disk does not take it.
        """
        values = {**request_row(request), "label": label, "activated": 0}
        return await self._writer.submit(lambda connection: accept(connection, request, _INSERT_KEY, values))

    async def accept_signature(
        self, request: Accepted, key_id: str, kind: str, derivation_path: tuple[int, ...]
    ) -> tuple[str, bool]:
        """Commit a signing request. Returns and raises as `accept_key`."""
        values = {
            **request_row(request),
            "key_id": key_id,
            "kind": kind,
            "derivation_path": msgspec.json.encode(derivation_path),
        }
        return await self._writer.submit(lambda connection: accept(connection, request, _INSERT_SIGNATURE, values))

    # --- progress ---

    async def certify_key(self, request_id: str, key_id: str, certificate: bytes, activated: int) -> None:
        """The key is there: its verified certificate and who can use it. State `Active`."""
        statement = (
            update(keys)
            .where(keys.c.id == request_id, keys.c.state.in_(UNFINISHED))
            .values(state="Active", key_id=key_id, certificate=certificate, activated=activated)
        )
        await self._change(statement, f"key request {request_id}")

    async def end_key(self, request_id: str, state: str, code: str, message: str, signer: str) -> None:
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

    async def set_executing(self, signature_id: str) -> None:
        """A gate takes its time."""
        await self._advance(_SET_STATE, signature_id, {"to": "Executing"})

    async def finish_signature(self, signature_id: str, result: bytes) -> None:
        """The verified signature, JSON of a `SignatureValue`. State `Signed`."""
        await self._advance(_FINISH, signature_id, {"signed": result})

    async def end_signature(self, signature_id: str, state: str, code: str, message: str, signer: str) -> None:
        """No signature comes of it: `Failed` or `Rejected`, and why."""
        values = {"to": state, "code": code, "message": message, "signer": signer}
        await self._advance(_END, signature_id, values)

    async def _advance(self, statement: Statement, signature_id: str, values: Mapping[str, object]) -> None:
        parameters = {"row": signature_id, **values}

        def write(connection: Connection) -> None:
            if statement.run(connection, parameters).rowcount != 1:
                raise Bug(f"signature {signature_id} has ended already")

        await self._writer.submit(write)

    async def _change(self, statement: Any, what: str) -> None:
        def write(connection: Connection) -> None:
            if connection.execute(statement).rowcount != 1:
                raise Bug(f"{what} is not there, or has ended already")

        await self._writer.submit(write)

    # --- reads ---

    def key_request(self, request_id: str) -> KeyRow | None:
        """A key by the id of its request. Raises `Unavailable`, as all reads do."""
        return self._one(_KEY_BY_ID, request_id, KeyRow)

    def key(self, key_id: str) -> KeyRow | None:
        """A key by its key id, which it has once it is certified."""
        return self._one(_KEY_BY_KEY_ID, key_id, KeyRow)

    def signature(self, signature_id: str) -> SignatureRow | None:
        """A signing request by its id."""
        return self._one(_SIGNATURE_BY_ID, signature_id, SignatureRow)

    def keys_after(self, seq: int, limit: int) -> list[KeyRow]:
        """At most `limit` keys that were requested after number `seq`, oldest first."""
        return self._many(select(keys).where(keys.c.seq > seq).order_by(keys.c.seq).limit(limit), KeyRow)

    def keys_to_activate(self, index: int, limit: int) -> list[KeyRow]:
        """At most `limit` certified keys that signer `index` has not said it can use, newest first."""
        missing = keys.c.activated.bitwise_and(1 << (index - 1)) == 0
        query = select(keys).where(keys.c.key_id.is_not(None), missing)
        return self._many(query.order_by(keys.c.seq.desc()).limit(limit), KeyRow)

    def unfinished_keys(self) -> list[KeyRow]:
        """Requests for keys that have not ended."""
        return self._many(select(keys).where(keys.c.state.in_(UNFINISHED)).order_by(keys.c.seq), KeyRow)

    def unfinished_signatures(self) -> list[SignatureRow]:
        """Signing requests that have not ended."""
        query = select(signatures).where(signatures.c.state.in_(UNFINISHED)).order_by(signatures.c.seq)
        return self._many(query, SignatureRow)

    def _one(self, query: Statement, row_id: str, kind: type[R]) -> R | None:
        try:
            row = query.one(self._database.reader, {"row": row_id})
        except DATABASE_ERRORS as error:
            raise store_failure(self._database.path, error) from error
        return None if row is None else kind(**row)

    def _many(self, query: Select[Any], kind: type[R]) -> list[R]:
        try:
            rows = self._database.reader.execute(query).all()
        except DATABASE_ERRORS as error:
            raise store_failure(self._database.path, error) from error
        return [kind(**row._mapping) for row in rows]
