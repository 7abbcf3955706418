"""Ceremonies that are under way: orders out, reports in, by ceremony id; bounded in number and in waiting reports."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from appliance.coordinator.errors import CeremonyEnded, GatesTakeTime, Rejected, failure
from appliance.coordinator.standing import Standing
from appliance.durations import DurationsBy
from enclave import wire

MAX_CEREMONIES = 8192
REPORTS_PER_MEMBER = 16

# What a ceremony is counted as, by its orders.
KINDS: Mapping[type[wire.Wire], str] = {
    wire.SetupOrder: "setup",
    wire.KeygenOrder: "keygen",
    wire.ActivateOrder: "activate",
    wire.PresignOrder: "presign",
    wire.SignOrder: "authorize",
    wire.OnlineOrder: "online",
    wire.BatchSignOrder: "batch-authorize",
    wire.BatchOnlineOrder: "batch-online",
    wire.RecallOrder: "recall",
    wire.ConsentOrder: "consent",
}

# The steps of these take every member the same work, and no gate is asked.
ONLINE_KINDS = frozenset({"online", "batch-online"})

R = TypeVar("R", bound=wire.Wire)
Quiet = type[wire.Wire] | tuple[()]


class Ceremony:
    """One ceremony. Reports that nobody ordered (wrong sender, ended ceremony) never get here."""

    def __init__(self, ceremony_id: bytes, members: Sequence[int], send: Callable[[int, wire.OrderBody], bool]) -> None:
        self.id, self.members = ceremony_id, tuple(members)
        self._send = send
        self._inbox: deque[tuple[int, wire.ReportBody | CeremonyEnded]] = deque()
        # Who waits in `next`, and what for.
        self._waiter: asyncio.Future[None] | None = None
        self._enough = 1
        self._quiet: Quiet = ()
        self._flooded: CeremonyEnded | None = None
        # Of each member, how many reports wait and when the newest came (monotonic seconds).
        self._waiting: dict[int, int] = {}
        self._came_s: dict[int, float] = {}
        self._dropped: set[int] = set()
        # What it is counted as: by its orders, and how far it came.
        self.kind = self.stage = "none"
        # How long each member took to answer `one_each`.
        self.took_s: dict[int, float] = {}

    def order(self, index: int, body: wire.OrderBody) -> None:
        """Send an order. Raises `CeremonyEnded` where the signer is away."""
        self._order((index,), body)

    def order_all(self, body: wire.OrderBody) -> None:
        """Send one order to every member. Raises `CeremonyEnded` where one is away."""
        self._order(self.members, body)

    def _order(self, indices: Sequence[int], body: wire.OrderBody) -> None:
        if isinstance(body, wire.PrepareOrder):
            self.kind, self.stage = body.purpose, "prepare"
        else:
            self.kind, self.stage = KINDS.get(type(body), self.kind), "ordered"
        for index in indices:
            if not self._send(index, body):
                raise CeremonyEnded("signer-away", f"signer {index} is not connected", index)

    def abandon(self) -> None:
        """Tell every member that can be reached to forget this ceremony."""
        for index in self.members:
            self._send(index, wire.AbandonOrder(self.id))

    async def next(self, deadline_s: float, awaited: Collection[int]) -> tuple[int, wire.ReportBody]:
        """The next report. Raises `CeremonyEnded` at `deadline_s` (of the loop's clock), naming who is `awaited`, or
        when a member is lost or floods."""
        await self._due(deadline_s, awaited, ())
        return self._pop()

    async def several(
        self, deadline_s: float, awaited: Collection[int], quiet: Quiet
    ) -> list[tuple[int, wire.ReportBody]]:
        """All reports that wait, one at least, once as many do as members are `awaited`, or one that is not of the
        `quiet` kind: under load, most of what a report costs is to wake up for it. Raises as `next`."""
        await self._due(deadline_s, awaited, quiet)
        reports = [self._pop()]
        while self._inbox and not isinstance(self._inbox[0][1], CeremonyEnded):
            reports.append(self._pop())
        return reports

    async def _due(self, deadline_s: float, awaited: Collection[int], quiet: Quiet) -> None:
        """Raises `CeremonyEnded` when time is over."""
        self._enough, self._quiet = max(len(awaited), 1), quiet
        if not self._is_due():
            try:
                await self._until_due(deadline_s)
            except TimeoutError:
                silent = sorted(index for index in awaited if not self._waiting.get(index))
                names = ", ".join(map(str, silent))
                raise CeremonyEnded(
                    "timeout", f"no answer in time from signer {names}", silent[0] if len(silent) == 1 else 0
                ) from None

    def _pop(self) -> tuple[int, wire.ReportBody]:
        if self._flooded is not None:
            raise self._flooded
        index, report = self._inbox.popleft()
        self._waiting[index] -= 1
        if isinstance(report, CeremonyEnded):
            raise report
        return index, report

    async def one_each(self, kind: type[R], timeout_s: float) -> dict[int, R]:
        """One report of `kind` from every member, by index. Raises `CeremonyEnded` or `Rejected` for any other."""
        got: dict[int, R] = {}
        started_s = time.monotonic()
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while len(got) < len(self.members):
            for index, report in await self.several(deadline_s, self.members_without(got), kind):
                if not isinstance(report, kind):
                    raise failure(index, report)
                if index in got:
                    raise CeremonyEnded("unexpected-report", f"{kind.__name__} came twice", index)
                got[index] = report
                self.took_s[index] = self._came_s[index] - started_s
        return got

    def members_without(self, others: Collection[int]) -> list[int]:
        """The members that are none of these."""
        return [index for index in self.members if index not in others]

    def drop(self, index: int) -> None:
        """Go on without this member: what it says is not heard any more."""
        self._dropped.add(index)
        self._inbox = deque(entry for entry in self._inbox if entry[0] != index)
        self._waiting.pop(index, None)
        if self._flooded is not None and self._flooded.signer == index:
            self._flooded = None

    def put(self, index: int, report: wire.ReportBody | CeremonyEnded) -> None:
        """Hand in a report. Too many waiting ones of one member end the ceremony, unless that one is dropped."""
        if index in self._dropped:
            return
        waiting = self._waiting.get(index, 0)
        if waiting >= REPORTS_PER_MEMBER:
            self._flooded = CeremonyEnded("flood", "too many reports of one ceremony", index)
        else:
            self._waiting[index], self._came_s[index] = waiting + 1, time.monotonic()
            self._inbox.append((index, report))
        # Of what waited before, nothing was due.
        due = self._flooded is not None or len(self._inbox) >= self._enough or not isinstance(report, self._quiet)
        if due and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _is_due(self) -> bool:
        if self._flooded is not None or len(self._inbox) >= self._enough:
            return True
        return any(not isinstance(report, self._quiet) for _, report in self._inbox)

    async def _until_due(self, deadline_s: float) -> None:
        """Raises `TimeoutError`."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_at(deadline_s, _expire, self._waiter)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


class _Opened:
    """The block of a ceremony: tells how it `ended`, and how many seconds it took."""

    def __init__(self, ceremony: Ceremony, ended: Callable[[Ceremony, float, BaseException | None], None]) -> None:
        self._ceremony, self._ended, self._started_s = ceremony, ended, time.perf_counter()

    def __enter__(self) -> Ceremony:
        return self._ceremony

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._ended(self._ceremony, time.perf_counter() - self._started_s, error)


class Ceremonies:
    """The table of ceremonies. `random(16)` names them; `ended` counts them by kind, round and outcome."""

    def __init__(
        self,
        send: Callable[[int, wire.OrderBody], bool],
        random: Callable[[int], bytes],
        max_ceremonies: int = MAX_CEREMONIES,
        standing: Standing | None = None,
    ) -> None:
        """`standing` is told of failures that name a signer, and how long the online step took each member."""
        self._send, self._random, self._max = send, random, max_ceremonies
        self._standing = standing
        self._open: dict[bytes, Ceremony] = {}
        self.ended: Counter[tuple[str, ...]] = Counter()
        self.seconds = DurationsBy()

    def open(self, members: Sequence[int]) -> _Opened:
        """A ceremony of these members, as long as the block lasts. Raises `CeremonyEnded` where there are too many."""
        if len(self._open) >= self._max:
            raise CeremonyEnded("busy", f"{self._max} ceremonies are under way")
        ceremony = Ceremony(self._random(16), members, self._send)
        self._open[ceremony.id] = ceremony
        return _Opened(ceremony, self._ended)

    def _ended(self, ceremony: Ceremony, took_s: float, error: BaseException | None) -> None:
        del self._open[ceremony.id]
        reached, outcome = ceremony.stage, "interrupted"
        if error is None:
            reached, outcome = "all", "done"
            if self._standing is not None and ceremony.kind in ONLINE_KINDS:
                self._standing.answered(ceremony.took_s)
        elif isinstance(error, Rejected):
            outcome = "rejected"
        elif isinstance(error, GatesTakeTime):
            outcome = "pending"
        elif isinstance(error, CeremonyEnded):
            reached, outcome = str(error.round or reached), "failed"
            if self._standing is not None:
                self._standing.failed(error.signer, error.code)
        self.ended[ceremony.kind, reached, outcome] += 1
        self.seconds.observe(ceremony.kind, took_s)

    def on_report(self, index: int, report: wire.ReportBody) -> bool:
        """Pass a report to its ceremony; False for one that has none, or not this member."""
        ceremony_id = getattr(report, "ceremony", None)
        ceremony = self._open.get(ceremony_id) if ceremony_id is not None else None
        if ceremony is None or index not in ceremony.members:
            return False
        ceremony.put(index, report)
        return True

    def on_lost(self, index: int) -> None:
        """A signer's connection is gone, and with it the ceremonies it is a member of."""
        for ceremony in list(self._open.values()):
            if index in ceremony.members:
                ceremony.put(index, CeremonyEnded("signer-away", f"signer {index} has disconnected", index))

    def __len__(self) -> int:
        return len(self._open)
