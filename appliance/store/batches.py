"""Batches of hashes in the coordinator's store: what was asked, where it stands, and every item's result."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, LargeBinary, String, Table, select

from appliance.store.accepted import (
    UNFINISHED,
    Acceptance,
    Accepted,
    RequestState,
    accept,
    metadata,
    request_columns,
    request_row,
    restarting,
)
from appliance.store.database import Database
from appliance.store.progress import Progress
from appliance.store.rows import Page, fetch, fetch_page, parse_row, parse_rows
from appliance.store.statements import Statement, insertion, parameter
from appliance.store.writer import GroupCommitWriter

batches = Table(
    "signature_batches",
    metadata,
    *request_columns(),
    Column("key_id", String, nullable=False),
    Column("count", Integer, nullable=False),
    Column("result", LargeBinary),
    Index("signature_batches_key", "key_id"),
)


_RESTART_BATCH = restarting(batches)
_INSERT_BATCH = insertion(batches, without=("seq", "result"))


class BatchSummaryRow(RequestState, frozen=True, kw_only=True):
    """A batch without what was asked and what came of it: a page of whole ones could hold 100 MB."""

    key_id: str
    count: int


class BatchRow(BatchSummaryRow, frozen=True, kw_only=True):
    """A requested batch of `count` hashes, with what was asked, as in `RequestRow`. `result`: JSON array of its items'
    results, in order."""

    path: str
    body: bytes
    jws: str
    result: bytes | None


_BATCH_BY_ID = Statement(select(batches).where(batches.c.id == parameter("row")))
_UNFINISHED_BATCHES = Statement(select(batches).where(batches.c.state.in_(UNFINISHED)).order_by(batches.c.seq))
_BATCHES_AFTER = Statement(
    select(*(batches.c[name] for name in BatchSummaryRow.__struct_fields__))
    .where(batches.c.key_id == parameter("key"), batches.c.seq > parameter("after"))
    .order_by(batches.c.seq)
    .limit(parameter("most"))
)


class SignatureBatches(Progress):
    """The batches' part of `CoordinatorStore`. All reads raise `Unavailable`."""

    def __init__(self, database: Database, writer: GroupCommitWriter) -> None:
        super().__init__(database, writer, batches)

    async def accept(self, request: Accepted, key_id: str, count: int) -> Acceptance:
        """Commit a request for a batch. Returns and raises as `Keys.accept`."""
        values = {**request_row(request), "key_id": key_id, "count": count}
        return await self._writer.submit(
            lambda connection: accept(connection, request, _INSERT_BATCH, _RESTART_BATCH, values)
        )

    def get(self, batch_id: str) -> BatchRow | None:
        """A batch by its id."""
        rows = fetch(self._database, _BATCH_BY_ID, {"row": batch_id})
        return parse_row(rows[0], BatchRow, batch_id) if rows else None

    def after(self, key_id: str, seq: int, limit: int) -> Page[BatchSummaryRow]:
        """At most `limit` batches of a key that came after number `seq`, oldest first."""
        return fetch_page(self._database, _BATCHES_AFTER, {"key": key_id, "after": seq}, limit, BatchSummaryRow)

    def unfinished(self) -> list[BatchRow]:
        """Batches that have not ended, and do not await approvals."""
        return parse_rows(fetch(self._database, _UNFINISHED_BATCHES, {}), BatchRow)
