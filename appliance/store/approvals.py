"""Approvals of signing requests: other clients' detached JWS over the same body, kept with the request."""

from __future__ import annotations

import msgspec
from sqlalchemy import Column, String, Table, select
from sqlalchemy.dialects.sqlite import insert

from appliance.store.accepted import metadata
from appliance.store.database import Database
from appliance.store.rows import fetch, parse_rows
from appliance.store.statements import Statement, parameter
from appliance.store.writer import GroupCommitWriter

approvals = Table(
    "approvals",
    metadata,
    Column("id", String, primary_key=True),
    Column("approver", String, primary_key=True),
    Column("jws", String, nullable=False),
)


class ApprovalRow(msgspec.Struct, frozen=True):
    """One client's newest approval of the request `id`."""

    id: str
    approver: str
    jws: str


_VALUES = {"id": parameter("row"), "approver": parameter("by"), "jws": parameter("signed")}
_PUT = Statement(
    insert(approvals)
    .values(_VALUES)
    .on_conflict_do_update(index_elements=["id", "approver"], set_={"jws": parameter("signed")})
)
_OF = Statement(select(approvals).where(approvals.c.id == parameter("row")).order_by(approvals.c.approver))


class Approvals:
    """The table's part of `CoordinatorStore`."""

    def __init__(self, database: Database, writer: GroupCommitWriter) -> None:
        self._database, self._writer = database, writer

    async def put(self, request_id: str, approver: str, jws: str) -> None:
        """Returns once it is on disk; an older one of the same client is gone."""
        values = {"row": request_id, "by": approver, "signed": jws}
        await self._writer.submit(lambda connection: _PUT.run(connection, values))

    def of(self, request_id: str) -> tuple[ApprovalRow, ...]:
        """All of one request. Raises `Unavailable`."""
        return tuple(parse_rows(fetch(self._database, _OF, {"row": request_id}), ApprovalRow))
