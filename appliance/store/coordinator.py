"""The coordinator's store: requests for keys and signatures, where they stand, and what external ids stand for.

No secret is here: client requests as they came, certificates, signatures.
"""

from __future__ import annotations

import pathlib

from sqlalchemy import Connection

from appliance.durations import Durations
from appliance.store.accepted import Accepted, Releasing, is_known, release
from appliance.store.approvals import Approvals
from appliance.store.awaiting import AwaitingApprovals, end_waiting
from appliance.store.batches import BatchRow, SignatureBatches, batches
from appliance.store.database import Database
from appliance.store.keys import Keys, keys
from appliance.store.signatures import SignatureRow, Signatures, signatures
from appliance.store.waiting import WaitingRequests
from appliance.store.writer import GroupCommitWriter

_RELEASE = tuple(Releasing(table) for table in (keys, signatures, batches))


class CoordinatorStore:
    """Writes return once they are on disk; reads see what is committed, and raise `Unavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = GroupCommitWriter(database)
        self.recovery = self._writer.recovery
        self.keys = Keys(database, self._writer)
        self.signatures = Signatures(database, self._writer)
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

    # --- what concerns requests of every kind ---

    def table_of(self, row: SignatureRow | BatchRow) -> Signatures | SignatureBatches:
        """Where requests of this kind are."""
        return self.batches if isinstance(row, BatchRow) else self.signatures

    def knows(self, request: Accepted) -> bool:
        """Whether its external id stands for a request."""
        return is_known(self._database, request)

    async def release(self, request_id: str) -> None:
        """The request's external id stands for nothing any more, since the signers know it as another request's."""
        await self._writer.submit(lambda connection: release(connection, _RELEASE, request_id))

    async def end_late(self, request_id: str, code: str) -> bool:
        """Whether the request awaited approvals: it has `Failed` then. One that is under way is due again when it
        awaits approvals again."""

        def write(connection: Connection) -> bool:
            end_waiting(connection, request_id)
            return any(table.fail_late(connection, request_id, code) for table in (self.signatures, self.batches))

        return await self._writer.submit(write)

    def awaiting_approvals(self) -> int:
        """How many requests await approvals now."""
        return self.signatures.awaiting() + self.batches.awaiting()
