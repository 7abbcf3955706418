"""How requests for signatures, and for batches of them, move on in the coordinator's store: one table each, the same
moves.

    Pending, Executing → Executing | AwaitingApprovals | an end
    AwaitingApprovals → Pending, once taken up | Failed, once late
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Table, func, select, update

from appliance.store.accepted import AWAITING, NO_REASON, UNFINISHED
from appliance.store.awaiting import Awaited, begin_waiting, end_waiting
from appliance.store.database import Database
from appliance.store.rows import fetch
from appliance.store.statements import Statement, parameter
from appliance.store.writer import GroupCommitWriter
from policies.errors import Bug


class Progress:
    """The moves of the requests of one table. Writes return once they are on disk."""

    def __init__(self, database: Database, writer: GroupCommitWriter, table: Table) -> None:
        self._database, self._writer = database, writer
        own = table.c.id == parameter("row")
        unfinished = update(table).where(own, table.c.state.in_(UNFINISHED))
        waiting = update(table).where(own, table.c.state == AWAITING)
        reason = {f"reason_{name}": parameter(name) for name in ("code", "message", "signer")}
        self._finish = Statement(unfinished.values(state=parameter("to"), result=parameter("done"), **NO_REASON))
        self._end = Statement(unfinished.values(state=parameter("to"), **reason))
        self._take_up = Statement(waiting.values(state="Pending", **NO_REASON))
        self._end_late = Statement(waiting.values(state="Failed", reason_code=parameter("code")))
        self._number = Statement(select(func.count().label("number")).where(table.c.state == AWAITING))

    async def set_executing(self, request_id: str, code: str, message: str, signer: str) -> None:
        """A gate takes its time: whose, and what is known of it."""
        values = {"row": request_id, "to": "Executing", "code": code, "message": message, "signer": signer}
        await self._writer.submit(lambda connection: _advance(connection, self._end, values))

    async def finish(self, request_id: str, state: str, result: bytes, *, waited: bool = True) -> None:
        """Shares were given: what came of them, as JSON. State `Signed`, or of a batch `PartlySigned`. `waited`: the
        request may have awaited approvals before."""
        values = {"row": request_id, "to": state, "done": result}
        if waited:
            await self._leave(self._finish, values)
        else:
            await self._writer.submit(lambda connection: _advance(connection, self._finish, values))

    async def end(self, request_id: str, state: str, code: str, message: str, signer: str) -> None:
        """No signature comes of it: `Failed` or `Rejected`, and why."""
        values = {"row": request_id, "to": state, "code": code, "message": message, "signer": signer}
        await self._leave(self._end, values)

    async def await_approvals(self, facts: Awaited, most: int, code: str, message: str, signer: str) -> bool:
        """Let the request be `AwaitingApprovals`, and say which ones; False, and nothing is written, where `most`
        others of its client are."""
        values = {"row": facts.id, "to": AWAITING, "code": code, "message": message, "signer": signer}

        def write(connection: Connection) -> bool:
            if not begin_waiting(connection, facts, most):
                return False
            _advance(connection, self._end, values)
            return True

        return await self._writer.submit(write)

    async def take_up(self, request_id: str) -> bool:
        """Whether the request awaited approvals: it is `Pending` then."""
        return await self._writer.submit(
            lambda connection: self._take_up.run(connection, {"row": request_id}).rowcount == 1
        )

    def fail_late(self, connection: Connection, request_id: str, code: str) -> bool:
        """Whether the request is of this table and awaited approvals: it has `Failed` then. Which ones it lacked stays
        its reason."""
        return self._end_late.run(connection, {"row": request_id, "code": code}).rowcount == 1

    def awaiting(self) -> int:
        """How many requests await approvals now. Raises `Unavailable`."""
        return int(fetch(self._database, self._number, {})[0]["number"])

    async def _leave(self, statement: Statement, values: Mapping[str, object]) -> None:
        def write(connection: Connection) -> None:
            _advance(connection, statement, values)
            end_waiting(connection, str(values["row"]))

        await self._writer.submit(write)


def _advance(connection: Connection, statement: Statement, values: Mapping[str, object]) -> None:
    if statement.run(connection, values).rowcount != 1:
        raise Bug(f"request {values['row']} is not there, or has ended already")
