"""What every accepted request has in the coordinator's store, and how its external id makes it repeatable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, String, Table, select
from sqlalchemy.dialects.sqlite import insert

from appliance.store.statements import Statement, parameter
from policies.errors import Bug, CallerError

UNFINISHED = ("Pending", "Executing")

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


external_ids = Table(
    "external_ids",
    metadata,
    Column("external_id", String, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("id", String, nullable=False),
)


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it was accepted. `digest`: 32 bytes over path and body, what idempotency compares."""

    id: str
    external_id: str
    path: str
    body: bytes
    jws: str
    created_at_ms: int
    digest: bytes


class ExternalIdTaken(CallerError):
    """The external id stands for another request."""


_INSERT_EXTERNAL = Statement(insert(external_ids).on_conflict_do_nothing())
_SELECT_EXTERNAL = Statement(
    select(external_ids.c.digest, external_ids.c.id).where(external_ids.c.external_id == parameter("external_id"))
)


def request_row(request: Accepted) -> dict[str, object]:
    """The row of a request that was just accepted."""
    return {
        "id": request.id,
        "external_id": request.external_id,
        "path": request.path,
        "body": request.body,
        "jws": request.jws,
        "state": "Pending",
        "created_at_ms": request.created_at_ms,
        "reason_code": "",
        "reason_message": "",
        "reason_signer": "",
    }


def accept(
    connection: Connection, request: Accepted, statement: Statement, values: Mapping[str, object]
) -> tuple[str, bool]:
    """Insert `values` by `statement`, unless the external id is known. Returns the id that it stands for, and
    whether it is new. Raises `ExternalIdTaken`."""
    external = {"external_id": request.external_id, "digest": request.digest, "id": request.id}
    if _INSERT_EXTERNAL.run(connection, external).rowcount == 1:
        statement.run(connection, values)
        return request.id, True
    known = _SELECT_EXTERNAL.one(connection, {"external_id": request.external_id})
    if known is None:
        raise Bug(f"externalId {request.external_id} is neither new nor known")
    if known["digest"] != request.digest:
        raise ExternalIdTaken(f"externalId {request.external_id} was used for another request")
    return str(known["id"]), False
