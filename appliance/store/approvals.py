"""Approvals of signing requests: other clients' detached JWS over the same body, kept until they expire."""

from __future__ import annotations

import msgspec
from sqlalchemy import Column, ColumnClause, Index, Integer, String, Table, delete, literal_column, select
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
    Column("expires_s", Integer, nullable=False),
    Index("approvals_expires_s", "expires_s"),
)


class ApprovalRow(msgspec.Struct, frozen=True):
    """One client's newest approval of the request `id`; it counts until `expires_s` (Unix seconds)."""

    id: str
    approver: str
    jws: str
    expires_s: int


_SIGNED = {"jws": parameter("signed"), "expires_s": parameter("until_s")}
_PUT = Statement(
    insert(approvals)
    .values({"id": parameter("row"), "approver": parameter("by"), **_SIGNED})
    .on_conflict_do_update(index_elements=["id", "approver"], set_=_SIGNED)
)
_OF = Statement(select(approvals).where(approvals.c.id == parameter("row")).order_by(approvals.c.approver))
_ROW: ColumnClause[int] = literal_column("rowid", Integer)
_EXPIRED = (
    select(_ROW).select_from(approvals).where(approvals.c.expires_s <= parameter("now_s")).limit(parameter("most"))
)
_SOME_EXPIRED = Statement(_EXPIRED)
_FORGET_EXPIRED = Statement(delete(approvals).where(_ROW.in_(_EXPIRED)))


class Approvals:
    """The table's part of `CoordinatorStore`."""

    def __init__(self, database: Database, writer: GroupCommitWriter) -> None:
        self._database, self._writer = database, writer

    async def put(self, row: ApprovalRow) -> None:
        """Returns once it is on disk; an older one of the same client is gone."""
        values = {"row": row.id, "by": row.approver, "signed": row.jws, "until_s": row.expires_s}
        await self._writer.submit(lambda connection: _PUT.run(connection, values))

    def of(self, request_id: str) -> tuple[ApprovalRow, ...]:
        """All of one request. Raises `Unavailable`."""
        return tuple(parse_rows(fetch(self._database, _OF, {"row": request_id}), ApprovalRow))

    async def forget_expired(self, now_s: float, most: int) -> int:
        """How many that count no longer at `now_s` (Unix seconds) are gone now, `most` at once: a request that was
        signed anew may have needed them until then. Raises `Unavailable`."""
        values = {"now_s": now_s, "most": most}
        if not fetch(self._database, _SOME_EXPIRED, {"now_s": now_s, "most": 1}):
            return 0
        return await self._writer.submit(lambda connection: _FORGET_EXPIRED.run(connection, values).rowcount)
