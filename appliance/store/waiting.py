"""Which gates an unfinished request waits for, so that a coordinator that comes back asks these and no others."""

from __future__ import annotations

import msgspec
from sqlalchemy import Column, LargeBinary, String, Table, delete, select
from sqlalchemy.dialects.sqlite import insert

from appliance.store.accepted import metadata
from appliance.store.database import Database
from appliance.store.failures import Damaged
from appliance.store.rows import fetch
from appliance.store.statements import Statement, parameter
from appliance.store.writer import GroupCommitWriter

waiting = Table(
    "waiting",
    metadata,
    Column("id", String, primary_key=True),
    Column("committee", LargeBinary, nullable=False),
    Column("until", LargeBinary, nullable=False),
)


class Waiting(msgspec.Struct, frozen=True):
    """`until_s`: by index of a signer whose gate decides, its deadline (Unix seconds). `committee`: whom the gates were
    told that would sign."""

    committee: tuple[int, ...]
    until_s: dict[int, int]


_FACTS = {"committee": parameter("committee"), "until": parameter("until")}
_PUT = Statement(
    insert(waiting).values({"id": parameter("row"), **_FACTS}).on_conflict_do_update(index_elements=["id"], set_=_FACTS)
)
_GET = Statement(select(waiting.c.committee, waiting.c.until).where(waiting.c.id == parameter("row")))
_FORGET = Statement(delete(waiting).where(waiting.c.id == parameter("row")))


class WaitingRequests:
    """The table's part of `CoordinatorStore`. Writes return once they are on disk."""

    def __init__(self, database: Database, writer: GroupCommitWriter) -> None:
        self._database, self._writer = database, writer

    async def put(self, request_id: str, facts: Waiting) -> None:
        """What the request waits for now."""
        values = {
            "row": request_id,
            "committee": msgspec.json.encode(facts.committee),
            "until": msgspec.json.encode(facts.until_s),
        }
        await self._writer.submit(lambda connection: _PUT.run(connection, values))

    async def forget(self, request_id: str) -> None:
        """It waits no more."""
        await self._writer.submit(lambda connection: _FORGET.run(connection, {"row": request_id}))

    def get(self, request_id: str) -> Waiting | None:
        """What it waited for when that was last said. Raises `Unavailable`."""
        rows = fetch(self._database, _GET, {"row": request_id})
        if not rows:
            return None
        try:
            return Waiting(
                msgspec.json.decode(rows[0]["committee"], type=tuple[int, ...]),
                msgspec.json.decode(rows[0]["until"], type=dict[int, int]),
            )
        except msgspec.DecodeError as error:
            raise Damaged(request_id, str(error)) from None
