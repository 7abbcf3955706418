"""Waiting for gates that need time (SPEC 6.6): for hours, while signers and this process may come and go.

Nothing is reserved meanwhile: the signers whose gates decide are asked with presignatures that nobody has, so that they
say so once they have approved. Only then are all members asked, with presignatures of that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Set

from appliance.coordinator.ceremonies import Ceremonies
from appliance.coordinator.errors import SPENT_RULES, CeremonyEnded, GatesTakeTime, failure
from appliance.coordinator.recall import After, Earlier
from appliance.store.waiting import Waiting
from enclave import wire

ANSWER_TIMEOUT_S = 75.0
MAX_GATE_WAIT_S = 24 * 3600.0
GATE_MARGIN_S = 15.0
PAUSE_FIRST_S, PAUSE_MOST_S = 0.25, 2.0
# The gates of a committee may decide one after the other, and a yes may expire before the last of them has.
MAX_ROUNDS = 8
APPROVED = (
    wire.UnknownPresignature,
    wire.UnknownPresignatures,
    wire.Authorized,
    wire.BatchAuthorized,
    wire.Consented,
)


def unheld(count: int) -> tuple[wire.PresignatureName, ...]:
    """Presignatures that nobody has."""
    return tuple(wire.PresignatureName(bytes(32), l) for l in range(1, count + 1))


class Gates:
    """The gates that one request waits for. `order(ceremony, committee, after)` puts the request to a signer;
    `on_pending` is told whenever one more gate needs time; `wall_clock`: Unix seconds."""

    def __init__(
        self,
        ceremonies: Ceremonies,
        order: Callable[[bytes, tuple[int, ...], bytes | None], wire.OrderBody],
        on_pending: Callable[[Waiting], Awaitable[None]],
        wall_clock: Callable[[], float],
        waiting: Waiting | None = None,
    ) -> None:
        """`waiting`: what an earlier run of this process waited for."""
        self._ceremonies, self._order, self._on_pending, self._clock = ceremonies, order, on_pending, wall_clock
        self._until_s: dict[int, int] = dict(waiting.until_s) if waiting else {}
        self._rounds = 0
        self.committee: tuple[int, ...] = waiting.committee if waiting else ()
        """Whom the gates were told, empty before one needed time: it should be these who sign."""

    @property
    def undecided(self) -> Set[int]:
        """The signers whose gates need time."""
        return self._until_s.keys()

    async def pending(self, index: int, until_s: int, members: tuple[int, ...]) -> None:
        """The gate of signer `index` needs time."""
        new = index not in self._until_s or self.committee != members
        self.committee, self._until_s[index] = members, until_s
        if new:
            await self._on_pending(Waiting(members, dict(self._until_s)))

    def approved(self, index: int) -> None:
        """The gate of signer `index` has said yes."""
        self._until_s.pop(index, None)

    def leave(self, answered: Collection[int]) -> None:
        """Raises `GatesTakeTime` where every member has `answered` or waits for its gate, and one does."""
        if self._until_s and self._until_s.keys() | answered >= set(self.committee):
            raise GatesTakeTime

    async def decided(self, after: After) -> None:
        """Until all of them have said yes. Raises `Rejected` where one said no, `CeremonyEnded` at the deadline, and
        where waiting is of no use."""
        if self._until_s:
            self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise CeremonyEnded("gate/undecided", f"gates needed time {MAX_ROUNDS} times in turn")
        pause_s = PAUSE_FIRST_S
        while self._until_s:
            try:
                await self._ask(after)
            except Earlier:
                raise
            except CeremonyEnded as error:
                over = self._clock() > max(self._until_s.values(), default=0) + GATE_MARGIN_S
                if over or error.code in SPENT_RULES:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MOST_S)

    async def consent(self, members: tuple[int, ...], after: After) -> None:
        """Every member's yes to what needs no presignature. Raises `GatesTakeTime`, `Rejected`, `CeremonyEnded`."""
        with self._ceremonies.open(members) as ceremony:
            for index in members:
                ceremony.order(index, self._order(ceremony.id, members, after.get(index)))
            answered, deadline_s = set[int](), asyncio.get_running_loop().time() + ANSWER_TIMEOUT_S
            while len(answered) < len(members):
                index, report = await ceremony.next(deadline_s, set(members) - answered)
                match report:
                    case wire.GatePending(_, until_s):
                        await self.pending(index, until_s, members)
                    case wire.Recalled():
                        raise Earlier(index)
                    case wire.Consented():
                        answered.add(index)
                        self.approved(index)
                    case _:
                        raise failure(index, report)
                self.leave(answered)

    async def _ask(self, after: After) -> None:
        loop, members = asyncio.get_running_loop(), tuple(sorted(self._until_s))
        with self._ceremonies.open(members) as ceremony:
            for index in members:
                ceremony.order(index, self._order(ceremony.id, self.committee, after.get(index)))
            unheard, deadline_s = set(members), loop.time() + ANSWER_TIMEOUT_S
            while self._until_s:
                if not unheard:
                    deadline_s = loop_deadline_s(max(self._until_s.values()), self._clock())
                index, report = await ceremony.next(deadline_s, unheard or self._until_s)
                unheard.discard(index)
                match report:
                    case wire.GatePending(_, until_s):
                        await self.pending(index, until_s, self.committee)
                    case wire.Recalled():
                        raise Earlier(index)
                    case _ if isinstance(report, APPROVED):
                        self.approved(index)
                    case _:
                        raise failure(index, report)


def loop_deadline_s(gate_deadline_s: int, now_s: float) -> float:
    """On the loop's clock, when a pending gate's answer must be there. `now_s`: Unix seconds, as the gate's."""
    wait_s = min(max(gate_deadline_s - now_s, 0.0), MAX_GATE_WAIT_S) + GATE_MARGIN_S
    return asyncio.get_running_loop().time() + wait_s
