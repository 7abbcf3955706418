"""Batches of hashes in the coordinator's store: what was asked, where it stands, and every item's result."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Column, Connection, Index, Integer, LargeBinary, String, Table, select, update

from appliance.store.accepted import (
    NO_REASON,
    UNFINISHED,
    Acceptance,
    Accepted,
    RequestRow,
    RequestState,
    accept,
    metadata,
    request_columns,
    request_row,
    restarting,
)
from appliance.store.database import Database
from appliance.store.rows import fetch, parse_row, parse_rows
from appliance.store.statements import Statement, insertion, parameter
from appliance.store.writer import GroupCommitWriter
from policies.errors import Bug

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


class BatchRow(RequestRow, frozen=True, kw_only=True):
    """A requested batch of `count` hashes. `result`: JSON array of its items' results, in order."""

    key_id: str
    count: int
    result: bytes | None


class BatchSummaryRow(RequestState, frozen=True, kw_only=True):
    """A batch without what was asked and what came of it: a page of whole ones could hold 100 MB."""

    key_id: str
    count: int


_BATCH_BY_ID = Statement(select(batches).where(batches.c.id == parameter("row")))
_UNFINISHED_BATCHES = Statement(select(batches).where(batches.c.state.in_(UNFINISHED)).order_by(batches.c.seq))
_BATCHES_AFTER = Statement(
    select(*(batches.c[name] for name in BatchSummaryRow.__struct_fields__))
    .where(batches.c.key_id == parameter("key"), batches.c.seq > parameter("after"))
    .order_by(batches.c.seq)
    .limit(parameter("most"))
)


class SignatureBatches:
    """The batches' part of `CoordinatorStore`. Writes return once they are on disk."""

    def __init__(self, database: Database, writer: GroupCommitWriter) -> None:
        self._database, self._writer = database, writer

    async def accept(self, request: Accepted, key_id: str, count: int) -> Acceptance:
        """Commit a request for a batch. Returns and raises as `Keys.accept`."""
        values = {**request_row(request), "key_id": key_id, "count": count}
        return await self._writer.submit(
            lambda connection: accept(connection, request, _INSERT_BATCH, _RESTART_BATCH, values)
        )

    async def set_executing(self, batch_id: str, code: str, message: str, signer: str) -> None:
        """A gate takes its time: whose, and what is known of it."""
        await self.end(batch_id, "Executing", code, message, signer)

    async def finish(self, batch_id: str, state: str, result: bytes) -> None:
        """The shares were given: every item's result. State `Signed` or `PartlySigned`."""
        await self._change(batch_id, {"state": state, "result": result, **NO_REASON})

    async def end(self, batch_id: str, state: str, code: str, message: str, signer: str) -> None:
        """No signature comes of it: `Failed` or `Rejected`, and why."""
        reason = {"reason_code": code, "reason_message": message, "reason_signer": signer}
        await self._change(batch_id, {"state": state, **reason})

    def get(self, batch_id: str) -> BatchRow | None:
        """A batch by its id. Raises `Unavailable`."""
        rows = fetch(self._database, _BATCH_BY_ID, {"row": batch_id})
        return parse_row(rows[0], BatchRow, batch_id) if rows else None

    def after(self, key_id: str, seq: int, limit: int) -> list[BatchSummaryRow]:
        """At most `limit` batches of a key that came after number `seq`, oldest first. Raises `Unavailable`."""
        values = {"key": key_id, "after": seq, "most": limit}
        return parse_rows(fetch(self._database, _BATCHES_AFTER, values), BatchSummaryRow)

    def unfinished(self) -> list[BatchRow]:
        """Batches that have not ended. Raises `Unavailable`."""
        return parse_rows(fetch(self._database, _UNFINISHED_BATCHES, {}), BatchRow)

    async def _change(self, batch_id: str, values: Mapping[str, object]) -> None:
        statement = update(batches).where(batches.c.id == batch_id, batches.c.state.in_(UNFINISHED)).values(**values)

        def write(connection: Connection) -> None:
            if connection.execute(statement).rowcount != 1:
                raise Bug(f"batch {batch_id} has ended already")

        await self._writer.submit(write)
