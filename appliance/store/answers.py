"""The newest answer under each request's name in the signer's store (SPEC 4.10), kept for a week.

Written in the transaction of the audit entry that is committed before the answer leaves: one row more, no commit more.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    func,
    literal_column,
    select,
)
from sqlalchemy import delete as delete_from
from sqlalchemy.dialects.sqlite import insert

from appliance.store.database import Database
from appliance.store.failures import Damaged
from appliance.store.rows import fetch
from appliance.store.statements import Statement, parameter
from enclave import wire

KEPT_S = 7 * 24 * 3600
# Every so many answers, at most so many whose time is over are deleted.
SWEEP_EVERY, SWEEP_ROWS = 4096, 8192


def answers_table(metadata: MetaData) -> Table:
    """The table, as part of `metadata`."""
    return Table(
        "answers",
        metadata,
        Column("name", LargeBinary, primary_key=True),
        Column("answer", LargeBinary, nullable=False),
        Column("at_s", Integer, nullable=False),
        Index("answers_at_s", "at_s"),
    )


class AnswerStore:
    """Nothing here is secret: every answer was made to leave this signer."""

    def __init__(self, database: Database, table: Table) -> None:
        self._database = database
        now_s = func.unixepoch()
        put = insert(table).values(name=parameter("name"), answer=parameter("answer"), at_s=now_s)
        self._put = Statement(
            put.on_conflict_do_update(
                index_elements=["name"], set_={"answer": put.excluded.answer, "at_s": put.excluded.at_s}
            )
        )
        self._get = Statement(select(table.c.answer).where(table.c.name == parameter("name")))
        rowid: ColumnElement[int] = literal_column("rowid")
        over = select(rowid).select_from(table).where(table.c.at_s < now_s - KEPT_S).limit(SWEEP_ROWS)
        self._sweep = Statement(delete_from(table).where(rowid.in_(over)))
        self._written = 0

    def write(self, connection: Connection, answer: wire.Answer) -> None:
        """Keep it in the transaction of `connection`, in place of an older one."""
        self._put.run(connection, {"name": answer.kept.name, "answer": wire.encode(answer)})
        self._written += 1
        if self._written % SWEEP_EVERY == 0:
            self._sweep.run(connection, {})

    def get(self, name: bytes) -> wire.Answer | None:
        """The newest answer under `name`. Raises `Unavailable`; `Damaged` for a row that can't be read."""
        for row in fetch(self._database, self._get, {"name": name}):
            try:
                return wire.decode(row["answer"], wire.Answer)
            except (wire.Malformed, TypeError) as error:
                raise Damaged("an answer to a request", str(error)) from None
        return None
