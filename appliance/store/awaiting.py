"""Which signing requests await approvals, whose they are and until when; also while they are tried again."""

from __future__ import annotations

import msgspec
from sqlalchemy import Column, Connection, Index, Integer, String, Table, delete, func, select
from sqlalchemy.dialects.sqlite import insert

from appliance.store.accepted import metadata
from appliance.store.database import Database
from appliance.store.rows import fetch
from appliance.store.statements import Statement, parameter

awaiting = Table(
    "awaiting",
    metadata,
    Column("id", String, primary_key=True),
    Column("client", String, nullable=False),
    Column("expires_s", Integer, nullable=False),
    Index("awaiting_client", "client"),
    Index("awaiting_expires_s", "expires_s"),
)


class Awaited(msgspec.Struct, frozen=True):
    """The request `id` of `client` waits no longer than until `expires_s` (Unix seconds)."""

    id: str
    client: str
    expires_s: int


_KNOWN = Statement(select(awaiting.c.id).where(awaiting.c.id == parameter("row")))
_OF = Statement(select(func.count().label("number")).where(awaiting.c.client == parameter("whose")))
_PUT = Statement(
    insert(awaiting).values({"id": parameter("row"), "client": parameter("whose"), "expires_s": parameter("until_s")})
)
_FORGET = Statement(delete(awaiting).where(awaiting.c.id == parameter("row")))
_DUE = Statement(
    select(awaiting.c.id)
    .where(awaiting.c.expires_s <= parameter("now_s"))
    .order_by(awaiting.c.expires_s)
    .limit(parameter("most"))
)
_FIRST = Statement(
    select(awaiting.c.expires_s).where(awaiting.c.expires_s >= 0).order_by(awaiting.c.expires_s).limit(1)
)


def begin_waiting(connection: Connection, facts: Awaited, most: int) -> bool:
    """Whether the request waits now; not where `most` others of its client do."""
    if _KNOWN.one(connection, {"row": facts.id}) is not None:
        return True
    others = _OF.one(connection, {"whose": facts.client})
    if others is not None and others["number"] >= most:
        return False
    _PUT.run(connection, {"row": facts.id, "whose": facts.client, "until_s": facts.expires_s})
    return True


def end_waiting(connection: Connection, request_id: str) -> None:
    """The request has ended, or its time is over."""
    _FORGET.run(connection, {"row": request_id})


class AwaitingApprovals:
    """What is read of the table; `CoordinatorStore` writes it, together with the requests' states. All of it raises
    `Unavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, client: str) -> int:
        """How many requests of one client wait."""
        return int(fetch(self._database, _OF, {"whose": client})[0]["number"])

    def due(self, now_s: float, most: int) -> list[str]:
        """At most `most` requests whose time is over at `now_s` (Unix seconds), the oldest first."""
        return [str(row["id"]) for row in fetch(self._database, _DUE, {"now_s": now_s, "most": most})]

    def first_s(self) -> int | None:
        """When the first of all ends (Unix seconds)."""
        rows = fetch(self._database, _FIRST, {})
        return int(rows[0]["expires_s"]) if rows else None
