"""What every accepted request has in the coordinator's store, and how its external id makes it repeatable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, String, Table, delete, select, update
from sqlalchemy.dialects.sqlite import insert

from appliance.store.database import Database
from appliance.store.rows import fetch
from appliance.store.statements import Statement, parameter
from policies.errors import Bug, CallerError

UNFINISHED = ("Pending", "Executing")
NO_REASON = {"reason_code": "", "reason_message": "", "reason_signer": ""}
# Other clients have to approve it.
AWAITING = "AwaitingApprovals"
OPEN = (*UNFINISHED, AWAITING)
# The rule by which signers say that an external id stands for another request of its client (SPEC 4.10).
CONFLICT = "request/external-id"
# Between an external id that was released and the id of the request that it was: none contains it.
RELEASED = "#"

# Between an external id and the client whose it is: none contains it.
OWNED = "/"

metadata = MetaData()


def request_columns() -> list[Column[Any]]:
    """What keys, signatures and batches have in common. `seq` orders them by acceptance."""
    return [
        Column("seq", Integer, primary_key=True),
        Column("id", String, nullable=False, unique=True),
        Column("external_id", String, nullable=False, unique=True),
        Column("path", String, nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("jws", String, nullable=False),
        Column("state", String, nullable=False, index=True),
        Column("created_at_ms", Integer, nullable=False),
        Column("reason_code", String, nullable=False),
        Column("reason_message", String, nullable=False),
        Column("reason_signer", String, nullable=False),
    ]


class RequestState(msgspec.Struct, frozen=True, kw_only=True):
    """Of `request_columns` what lists need: where a request stands, without the request."""

    seq: int
    id: str
    external_id: str
    state: str
    created_at_ms: int
    reason_code: str
    reason_message: str
    reason_signer: str


class RequestRow(RequestState, frozen=True, kw_only=True):
    """A row of `request_columns`."""

    path: str
    body: bytes
    jws: str


external_ids = Table(
    "external_ids",
    metadata,
    Column("external_id", String, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("id", String, nullable=False),
)


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it was accepted. `client`: who signed it, and whose external id it is (empty: nobody's in
    particular). `digest`: 32 bytes over path and body, what idempotency compares."""

    id: str
    external_id: str
    path: str
    body: bytes
    jws: str
    created_at_ms: int
    digest: bytes
    client: str = ""

    @property
    def name(self) -> str:
        """What is unique: clients' external ids do not meet (SPEC 4.10)."""
        return self.external_id + OWNED + self.client if self.client else self.external_id


class Acceptance(msgspec.Struct, frozen=True):
    """What the external id stands for now. `new`: it stood for nothing before; `run`: it has to be carried out, because
    it is new or has failed before."""

    id: str
    new: bool
    run: bool


class ExternalIdTaken(CallerError):
    """The external id stands for another request."""


_INSERT_EXTERNAL = Statement(insert(external_ids).on_conflict_do_nothing())
_FORGET_EXTERNAL = Statement(
    delete(external_ids).where(
        external_ids.c.external_id == parameter("external_id"), external_ids.c.id == parameter("row")
    )
)
_SELECT_EXTERNAL = Statement(
    select(external_ids.c.digest, external_ids.c.id).where(external_ids.c.external_id == parameter("external_id"))
)


def request_row(request: Accepted) -> dict[str, object]:
    """The row of a request that was just accepted."""
    return {
        "id": request.id,
        "external_id": request.name,
        "path": request.path,
        "body": request.body,
        "jws": request.jws,
        "state": "Pending",
        "created_at_ms": request.created_at_ms,
        **NO_REASON,
    }


def accept(
    connection: Connection, request: Accepted, statement: Statement, restart: Statement, values: Mapping[str, object]
) -> Acceptance:
    """Insert `values` by `statement`, unless the external id is known; `restart` the request it stands for, where that
    has failed. Raises `ExternalIdTaken`."""
    external = {"external_id": request.name, "digest": request.digest, "id": request.id}
    if _INSERT_EXTERNAL.run(connection, external).rowcount == 1:
        statement.run(connection, values)
        return Acceptance(request.id, new=True, run=True)
    known = _SELECT_EXTERNAL.one(connection, {"external_id": request.name})
    if known is None:
        raise Bug(f"externalId {request.external_id} is neither new nor known")
    if known["digest"] != request.digest:
        raise ExternalIdTaken(f"externalId {request.external_id} was used for another request")
    run = restart.run(connection, {"row": known["id"], "new_jws": request.jws}).rowcount == 1
    return Acceptance(str(known["id"]), new=False, run=run)


def is_known(database: Database, request: Accepted) -> bool:
    """Whether the external id stands for a request. Raises `Unavailable`."""
    return bool(fetch(database, _SELECT_EXTERNAL, {"external_id": request.name}))


def restarting(table: Table) -> Statement:
    """Takes a failed request up again, as it was signed now."""
    values = {"state": "Pending", "jws": parameter("new_jws")} | NO_REASON
    return Statement(update(table).where(table.c.id == parameter("row"), table.c.state == "Failed").values(**values))


class Releasing:
    """Takes its external id from a request of one `table` (`release`)."""

    def __init__(self, table: Table) -> None:
        own = table.c.id == parameter("row")
        held = ~table.c.external_id.endswith(RELEASED + table.c.id)
        changed = table.c.external_id + RELEASED + table.c.id
        self._name = Statement(select(table.c.external_id).where(own, held))
        self._free = Statement(update(table).where(own, held).values(external_id=changed))

    def run(self, connection: Connection, request_id: str) -> None:
        """Nothing, where this table has no such request, or it is released already."""
        named = self._name.one(connection, {"row": request_id})
        if named is not None:
            _FORGET_EXTERNAL.run(connection, {"row": request_id, **named})
            self._free.run(connection, {"row": request_id})


def release(connection: Connection, tables: Iterable[Releasing], request_id: str) -> None:
    """The signers know the external id as another request's: here it stands for nothing any more."""
    for table in tables:
        table.run(connection, request_id)


def shown_external_id(external_id: str) -> str:
    """As its client wrote it."""
    return external_id.partition(OWNED)[0].partition(RELEASED)[0]
