"""Which pools are kept filled, and filling them: one batch at a time, the emptiest first, paced while others sign."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from appliance.coordinator.ceremonies import Ceremonies
from appliance.coordinator.changes import Changes
from appliance.coordinator.committees import kept
from appliance.coordinator.config import MAX_MARK, PoolSettings
from appliance.coordinator.consumption import Marks
from appliance.coordinator.errors import CeremonyEnded, Rejected
from appliance.coordinator.line import Line
from appliance.coordinator.nonces import NoncesAhead
from appliance.coordinator.pools import Pools
from appliance.coordinator.presigning import BatchIncomplete, presign
from appliance.coordinator.sessions import Signers
from appliance.coordinator.standing import Standing
from appliance.coordinator.suspicions import Suspicions
from enclave.wire import MAX_PRESIGNATURES
from policies.roster import Roster

# The first batch of an empty pool is small, so that whoever waits is served soon.
FIRST_BATCH = 256
# After a batch nobody waits for, the pause is so many times as long as the batch took: signatures go before.
PAUSE_FACTOR = 1.0
LONGEST_PAUSE_S = 10.0
MAX_FAILURE_CHARS = 300
# How an enclave's refusal of a batch begins that its pool has no room for.
NO_ROOM = "pool: "

log = structlog.get_logger()


@dataclass
class Filling:
    """How one committee's pool is being filled. `batch_s`: seconds that its last whole batch took, None before one.
    `failure`: why the last batch failed; empty where it did not."""

    wanted: bool = False
    under_way: bool = False
    batch_s: float | None = None
    failure: str = ""


@dataclass
class Refill:
    """Fills the pools. `forget_batch(sid, holders)` orders members to forget one; `clock`: monotonic seconds."""

    roster: Roster
    settings: PoolSettings
    signers: Signers
    pools: Pools
    ceremonies: Ceremonies
    nonces: NoncesAhead
    standing: Standing
    suspicions: Suspicions
    changes: Changes
    line: Line
    forget_batch: Callable[[bytes, Sequence[int]], None]
    clock: Callable[[], float]
    # How many presignatures each waiting request needs of one committee.
    wanted: list[int] = field(default_factory=list)
    _fillings: dict[tuple[int, ...], Filling] = field(default_factory=dict)
    _resume_s: float = 0.0

    def filling(self, committee: tuple[int, ...]) -> Filling:
        """How the pool of `committee` is being filled."""
        return self._fillings.get(committee, Filling())

    def marks(self) -> Marks:
        """The marks of every pool."""
        return marks_of(self.roster, self.settings)

    def most(self) -> int:
        """The highest mark that the memory of the signers allows a pool."""
        return marks_of(self.roster, msgspec.structs.replace(self.settings, high=MAX_MARK)).high

    def preferred(self) -> tuple[tuple[int, ...], ...]:
        """The committees whose pools are kept filled: neighbours in the roster's circle that are all there; where
        there is no such committee, neighbours in the circle of those that are there. Signers that failed or are slow
        count as away as long as enough others are there."""
        size = self.roster.committee_size
        there = self.standing.without_avoided(self.signers.online(), size)
        return kept(self.roster.indices, there, size)

    async def step(self) -> bool:
        """Make the next batch; False where none is needed. Raises `CeremonyEnded` where it failed."""
        committee = self._next()
        if committee is None:
            return False
        if await self._paused():
            return True
        count = self._size_of_next(committee)
        filling = self._fillings.setdefault(committee, Filling())
        filling.under_way, started_s = True, self.clock()
        self.pools.presigning(committee, under_way=True)
        try:
            self._make_room(committee, count)
            nonces = await self.nonces.take(committee)
            sid = await presign(self.ceremonies, committee, count, nonces, self.suspicions.unfinished)
            self.pools.add(sid, committee, count)
            self.standing.presigned(committee)
        except (CeremonyEnded, Rejected) as error:
            filling.failure = str(error)[:MAX_FAILURE_CHARS]
            if isinstance(error, BatchIncomplete):
                self.forget_batch(error.sid, error.holders)
            if isinstance(error, CeremonyEnded) and error.code == "order-refused":
                self._give_way(error)
            raise
        finally:
            filling.under_way = False
            self.pools.presigning(committee, under_way=False)
        took_s, filling.failure = self.clock() - started_s, ""
        if count == self.settings.batch or filling.batch_s is None:
            filling.batch_s = took_s * self.settings.batch / count
        self._resume_s = self.clock() + min(took_s * PAUSE_FACTOR, LONGEST_PAUSE_S)
        available = self.pools.available(committee)
        log.info("presigned", committee=committee, count=count, available=available, ms=round(took_s * 1000, 1))
        return True

    def _next(self) -> tuple[int, ...] | None:
        """The fullest committee where a request waits for more; else one below `low`, or on its way from there to
        `high`, the emptiest first."""
        preferred = self.preferred()
        ready = [c for c in preferred if self.pools.synced(c) and self.signers.ready(c)]
        fullest = max(ready, key=self.pools.available, default=None)
        if fullest is not None and self.pools.available(fullest) < max(self.wanted, default=0):
            return fullest
        marks, low_ones = self.marks(), []
        for committee in [c for c in self._fillings if c not in preferred]:
            del self._fillings[committee]
        for committee in ready:
            available = self.pools.available(committee)
            filling = self._fillings.setdefault(committee, Filling())
            filling.wanted = available < marks.low or (filling.wanted and available < marks.high)
            if filling.wanted:
                low_ones.append(committee)
        return min(low_ones, key=self.pools.available, default=None)

    async def _paused(self) -> bool:
        """Let signatures go first for a moment, unless somebody waits for presignatures or nobody signs."""
        pause_s = self._resume_s - self.clock()
        if pause_s <= 0 or self._is_urgent() or not len(self.ceremonies):
            return False
        change = self.changes.next()
        try:
            async with asyncio.timeout(pause_s):
                while not self._is_urgent():
                    await change.wait()
                    change = self.changes.next()
        except TimeoutError:
            self._resume_s = 0.0
        return True

    def _is_urgent(self) -> bool:
        """Whether a request waits, or a pool that is kept filled is about to be empty."""
        if len(self.line) or self.wanted:
            return True
        low = self.marks().low
        ready = [committee for committee in self.preferred() if self.signers.ready(committee)]
        return any(self.pools.available(committee) < max(low // 4, 1) for committee in ready)

    def _size_of_next(self, committee: tuple[int, ...]) -> int:
        if self.pools.available(committee) or max(self.wanted, default=0) > FIRST_BATCH:
            return self.settings.batch
        return min(self.settings.batch, FIRST_BATCH)

    def _make_room(self, committee: tuple[int, ...], count: int) -> None:
        """Give up pools that are not kept filled any more, where a member's memory has no room for the batch."""
        while any(self.pools.held(member) + count > MAX_PRESIGNATURES for member in committee):
            if not self._give_up(set(committee)):
                raise CeremonyEnded("busy", f"a signer's pool has no room for {count}: lower pool.high")

    def _give_way(self, refusal: CeremonyEnded) -> None:
        """A signer has less room than we thought: other coordinators have their shares of its memory."""
        if refusal.reason.startswith(NO_ROOM):
            self._give_up({refusal.signer})

    def _give_up(self, members: set[int]) -> bool:
        """Give up the oldest batch with one of `members` of a pool that is not kept filled; False where there is
        none."""
        given_up = self.pools.give_up(members, set(self.preferred()))
        if given_up is None:
            return False
        log.info("batch-given-up", committee=given_up[1])
        self.forget_batch(*given_up)
        return True


def marks_of(roster: Roster, settings: PoolSettings) -> Marks:
    """The marks of every pool: as configured, but no signer is made to hold more than its memory's bound."""
    # So many of the pools that are kept filled have a part in one signer.
    pools = 1 if roster.n == roster.committee_size else roster.committee_size
    high = min(settings.high, max(MAX_PRESIGNATURES // pools - settings.batch, 1))
    return Marks(min(settings.low, high), high)
