"""The coordinator's store: requests for keys and signatures, where they stand, and what external ids stand for.

No secret is here: client requests as they came, certificates, signatures.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import msgspec
from sqlalchemy import (
    Column,
    Connection,
    Index,
    LargeBinary,
    String,
    Table,
    func,
    select,
    update,
)

from appliance.durations import Durations
from appliance.store.accepted import (
    AWAITING,
    NO_REASON,
    UNFINISHED,
    Acceptance,
    Accepted,
    Releasing,
    RequestRow,
    accept,
    is_known,
    metadata,
    release,
    request_columns,
    request_row,
    restarting,
)
from appliance.store.approvals import Approvals
from appliance.store.awaiting import Awaited, AwaitingApprovals, begin_waiting, end_waiting
from appliance.store.batches import SignatureBatches, batches
from appliance.store.database import Database
from appliance.store.keys import Keys, keys
from appliance.store.rows import fetch, parse_row, parse_rows
from appliance.store.statements import Statement, insertion, parameter
from appliance.store.waiting import WaitingRequests
from appliance.store.writer import GroupCommitWriter
from policies.errors import Bug

signatures = Table(
    "signatures",
    metadata,
    *request_columns(),
    Column("key_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("derivation_path", LargeBinary, nullable=False),
    Column("result", LargeBinary),
    Index("signatures_key", "key_id"),
)


class SignatureRow(RequestRow, frozen=True, kw_only=True):
    """A requested signature. `result`: JSON of the `SignatureValue`; `derivation_path`: JSON array."""

    key_id: str
    kind: str
    derivation_path: bytes
    result: bytes | None


_RESTART_SIGNATURE = restarting(signatures)
_RELEASE = tuple(Releasing(table) for table in (keys, signatures, batches))
_INSERT_SIGNATURE = insertion(signatures, without=("seq", "result"))
_SIGNATURE_BY_ID = Statement(select(signatures).where(signatures.c.id == parameter("row")))
_UNFINISHED_SIGNATURES = Statement(
    select(signatures).where(signatures.c.state.in_(UNFINISHED)).order_by(signatures.c.seq)
)
_SIGNATURES_AFTER = Statement(
    select(signatures)
    .where(signatures.c.key_id == parameter("key"), signatures.c.seq > parameter("after"))
    .order_by(signatures.c.seq)
    .limit(parameter("most"))
)
_UNFINISHED_SIGNATURE = update(signatures).where(
    signatures.c.id == parameter("row"), signatures.c.state.in_(UNFINISHED)
)
_AWAITING_SIGNATURE = update(signatures).where(signatures.c.id == parameter("row"), signatures.c.state == AWAITING)
_TAKE_UP = Statement(_AWAITING_SIGNATURE.values(state="Pending", **NO_REASON))
_END_LATE = Statement(_AWAITING_SIGNATURE.values(state="Failed", reason_code=parameter("code")))
_AWAITING = Statement(select(func.count().label("number")).where(signatures.c.state == AWAITING))
_FINISH = Statement(_UNFINISHED_SIGNATURE.values(state="Signed", result=parameter("signed"), **NO_REASON))
_END = Statement(
    _UNFINISHED_SIGNATURE.values(
        state=parameter("to"),
        reason_code=parameter("code"),
        reason_message=parameter("message"),
        reason_signer=parameter("signer"),
    )
)


class CoordinatorStore:
    """Writes return once they are on disk; reads see what is committed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = GroupCommitWriter(database)
        self.recovery = self._writer.recovery
        self.keys = Keys(database, self._writer)
        self.batches = SignatureBatches(database, self._writer)
        self.waits = WaitingRequests(database, self._writer)
        self.approvals = Approvals(database, self._writer)
        self.awaiting = AwaitingApprovals(database)

    @classmethod
    def open(cls, path: pathlib.Path) -> CoordinatorStore:
        """Open or create the store at `path`. Raises `StoreFailed`, an `Unavailable`."""
        return cls(Database.open(path, "coordinator"))

    @property
    def commit_seconds(self) -> Durations:
        """How long each transaction took to be on disk."""
        return self._writer.commit_seconds

    @property
    def waiting(self) -> int:
        """Writes that no transaction has taken yet."""
        return self._writer.waiting

    async def close(self) -> None:
        """Commit what is waiting and close the file."""
        await self._writer.close()
        self._database.close()

    # --- acceptance ---

    async def accept_signature(
        self, request: Accepted, key_id: str, kind: str, derivation_path: tuple[int, ...]
    ) -> Acceptance:
        """Commit a signing request. Returns and raises as `Keys.accept`."""
        values = {
            **request_row(request),
            "key_id": key_id,
            "kind": kind,
            "derivation_path": msgspec.json.encode(derivation_path),
        }
        return await self._writer.submit(
            lambda connection: accept(connection, request, _INSERT_SIGNATURE, _RESTART_SIGNATURE, values)
        )

    def knows(self, request: Accepted) -> bool:
        """Whether its external id stands for a request. Raises `Unavailable`."""
        return is_known(self._database, request)

    async def release(self, request_id: str) -> None:
        """The request's external id stands for nothing any more, since the signers know it as another request's."""
        await self._writer.submit(lambda connection: release(connection, _RELEASE, request_id))

    # --- progress ---

    async def take_up(self, signature_id: str) -> bool:
        """Whether the request awaited approvals: it is `Pending` then."""
        return await self._writer.submit(
            lambda connection: _TAKE_UP.run(connection, {"row": signature_id}).rowcount == 1
        )

    async def end_late(self, signature_id: str, code: str) -> bool:
        """Whether the request awaited approvals: it has `Failed` then. Which ones it lacked stays its reason. One that
        is under way is due again when it awaits approvals again."""
        values = {"row": signature_id, "code": code}

        def write(connection: Connection) -> bool:
            end_waiting(connection, signature_id)
            return _END_LATE.run(connection, values).rowcount == 1

        return await self._writer.submit(write)

    async def await_approvals(self, facts: Awaited, most: int, code: str, message: str, signer: str) -> bool:
        """Let the request be `AwaitingApprovals`, and say which ones; False, and nothing is written, where `most`
        others of its client are."""
        values = {"row": facts.id, "to": AWAITING, "code": code, "message": message, "signer": signer}

        def write(connection: Connection) -> bool:
            if not begin_waiting(connection, facts, most):
                return False
            _advance(connection, _END, values)
            return True

        return await self._writer.submit(write)

    async def set_executing(self, signature_id: str, code: str, message: str, signer: str) -> None:
        """A gate takes its time: whose, and what is known of it."""
        values = {"to": "Executing", "code": code, "message": message, "signer": signer}
        await self._writer.submit(lambda connection: _advance(connection, _END, {"row": signature_id, **values}))

    async def finish_signature(self, signature_id: str, result: bytes) -> None:
        """The verified signature, JSON of a `SignatureValue`. State `Signed`."""
        await self._end(_FINISH, signature_id, {"signed": result})

    async def end_signature(self, signature_id: str, state: str, code: str, message: str, signer: str) -> None:
        """No signature comes of it: `Failed` or `Rejected`, and why."""
        values = {"to": state, "code": code, "message": message, "signer": signer}
        await self._end(_END, signature_id, values)

    async def _end(self, statement: Statement, signature_id: str, values: Mapping[str, object]) -> None:
        def write(connection: Connection) -> None:
            _advance(connection, statement, {"row": signature_id, **values})
            end_waiting(connection, signature_id)

        await self._writer.submit(write)

    # --- reads ---

    def signature(self, signature_id: str) -> SignatureRow | None:
        """A signing request by its id. Raises `Unavailable`, as all reads do."""
        rows = fetch(self._database, _SIGNATURE_BY_ID, {"row": signature_id})
        return parse_row(rows[0], SignatureRow, signature_id) if rows else None

    def signatures_after(self, key_id: str, seq: int, limit: int) -> list[SignatureRow]:
        """At most `limit` signing requests of a key that came after number `seq`, oldest first."""
        values = {"key": key_id, "after": seq, "most": limit}
        return parse_rows(fetch(self._database, _SIGNATURES_AFTER, values), SignatureRow)

    def unfinished_signatures(self) -> list[SignatureRow]:
        """Signing requests that have not ended."""
        return parse_rows(fetch(self._database, _UNFINISHED_SIGNATURES, {}), SignatureRow)

    def awaiting_approvals(self) -> int:
        """How many signing requests await approvals now."""
        return int(fetch(self._database, _AWAITING, {})[0]["number"])


def _advance(connection: Connection, statement: Statement, values: Mapping[str, object]) -> None:
    if statement.run(connection, values).rowcount != 1:
        raise Bug(f"signature {values['row']} has ended already")
