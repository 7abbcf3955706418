"""SPEC 7.1, 7.3, 7.4: what was signed within the windows of the policy's limits, and what is held for authorizations.

In memory; `ledger_keeping.py` brings it back after a restart. Nothing that was charged is given back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from enclave.counting_clock import CountingClock
from enclave.errors import Refused
from policies.counters import NOTHING, Charge, Count, Counters
from policies.limits import Anomaly

SLOTS = 32
MAX_COUNTERS = 4096
MAX_SLOTS = 8192
MAX_DESTINATIONS = 2048
# Requests that were seized at once may have passed the bounds together, by less than this.
MAX_FOLDED = 2 * MAX_SLOTS
SWEEP_EVERY_S = 1


class Counter:
    """The amounts of one window, in slots of a 32nd of it. `last_s`: time never goes back behind the newest."""

    __slots__ = ("last_s", "slot_s", "slots", "total", "window_s")

    def __init__(self, window_s: int, last_s: int = 0, slots: Iterable[tuple[int, int]] = ()) -> None:
        self.window_s, self.last_s = window_s, last_s
        self.slot_s = max(1, -(-window_s // SLOTS))
        self.slots: deque[tuple[int, int]] = deque(slots)
        self.total = sum(amount for _, amount in self.slots)

    def used(self, now_s: int) -> int:
        """SPEC 7.1: what counts at `now_s`; drops what does not any more."""
        from_s = max(now_s, self.last_s) - self.window_s
        while self.slots and (self.slots[0][0] + 1) * self.slot_s <= from_s:
            self.total -= self.slots.popleft()[1]
        return self.total

    def add(self, now_s: int, amount: int) -> None:
        """`amount` more."""
        self.last_s = max(now_s, self.last_s)
        slot = self.last_s // self.slot_s
        before = self.slots.pop()[1] if self.slots and self.slots[-1][0] == slot else 0
        self.slots.append((slot, before + amount))
        self.total += amount


@dataclass(frozen=True)
class _Hold:
    charge: Charge
    until_s: float


class Ledger:
    """All counters, holds and destinations. `wall_clock` is that of authorizations: it says when they expire.

    `charged`: how many charges there were since the start.
    """

    def __init__(self, clock: CountingClock, wall_clock: Callable[[], float]) -> None:
        self.clock, self._wall_clock = clock, wall_clock
        self.counters: dict[str, Counter] = {}
        # The one used longest ago comes first.
        self.destinations: dict[str, None] = {}
        self.charged = 0
        self._holds: dict[bytes, _Hold] = {}
        self._seized: dict[bytes, Charge] = {}
        self._held: dict[str, int] = {}
        self._next_sweep_s = 0
        # At most so many: slots that were dropped since the last sweep are counted still.
        self._slots = 0

    def present(
        self,
        observed: frozenset[Anomaly],
        unknown: str = "",
        but: bytes = b"",
        counted: Charge = NOTHING,
        clock_doubt: str = "",
    ) -> Counters:
        """What counts now, for a decision that is made at once. `unknown`, `clock_doubt`: see `Counters`. Left out is
        what counts of the request `but` itself: what is held and seized for it, and `counted`, which it was charged."""
        self._expire()
        hold = self._holds.get(but)
        own: dict[str, int] = {}
        for charge in (counted, self._seized.get(but, NOTHING), hold.charge if hold is not None else NOTHING):
            for count in charge.counts:
                own[count.key] = own.get(count.key, 0) + count.amount
        return Counters(_Used(self, own), self.destinations.keys(), observed, unknown, clock_doubt)

    def used(self, key: str) -> int:
        """What counts under `key`, and what is held under it."""
        counter = self.counters.get(key)
        counted = counter.used(self.clock.now_s()) if counter is not None else 0
        return counted + self._held.get(key, 0)

    def hold(self, request: bytes, charge: Charge, until_s: float) -> None:
        """SPEC 7.3: keep room for an authorization of `request` until it expires. Raises `Refused` where there is none;
        what was held for the request before is free then."""
        self.release(request)
        self._check(charge)
        self._holds[request] = _Hold(charge, until_s)
        self._book(charge, 1)

    def release(self, request: bytes) -> None:
        """The authorization of `request` cannot be used any more."""
        hold = self._holds.pop(request, None)
        if hold is not None:
            self._book(hold.charge, -1)

    def seize(self, request: bytes, charge: Charge) -> None:
        """SPEC 7.4: a share is about to be made. What was held is now for it, and stays until `charge` or `give_up`.
        Raises `Refused` where there is no room any more."""
        self.release(request)
        self._check(charge)
        self._seized[request] = charge
        self._book(charge, 1)

    def give_up(self, request: bytes) -> None:
        """Nothing was spent for it after all."""
        charge = self._seized.pop(request, None)
        if charge is not None:
            self._book(charge, -1)

    def charge(self, request: bytes) -> dict[str, int | list[str]]:
        """SPEC 7.4: count what was seized, for good. The facts for the audit entry, without which no share leaves."""
        charge, now = self._seized[request], self.clock.now()
        self.give_up(request)
        for count in charge.counts:
            self._count(count.key, count.window_s, now.counted_s, count.amount)
        self._reach(charge.destinations)
        self.charged += 1
        facts: dict[str, int | list[str]] = now.facts()
        if charge.counts:
            facts["charged"] = [f"{count.amount} {count.key}" for count in charge.counts]
        if charge.destinations:
            facts["destinations"] = list(charge.destinations)
        return facts

    def fold(self, counted_at_s: int, charged: Iterable[tuple[str, int, int]], destinations: Iterable[str]) -> None:
        """SPEC 7.5: what an audit entry says was charged: key, window and amount of each count. Raises `Refused` where
        that is more than this enclave ever charged (the entries are a store's, and not yet known to be its own)."""
        counts = tuple(charged)
        if len(self.counters) + len(counts) > MAX_FOLDED or self._slots + len(counts) > MAX_FOLDED:
            self.sweep(counted_at_s)
            if len(self.counters) + len(counts) > MAX_FOLDED or self._slots + len(counts) > MAX_FOLDED:
                raise Refused("policy/limits", "the store's audit chain charges more counters than an enclave keeps")
        for key, window_s, amount in counts:
            self._count(key, window_s, counted_at_s, amount)
        self._reach(destinations)

    def clear(self) -> None:
        """Nothing is known."""
        self.counters.clear()
        self.destinations.clear()
        self._slots = 0

    def sweep(self, now_s: int) -> None:
        """Forget what counts no more at `now_s`."""
        for key in [key for key, counter in self.counters.items() if not counter.used(now_s)]:
            del self.counters[key]
        self.recount()

    def recount(self) -> None:
        """Count the slots, of which some may have been dropped or brought back."""
        self._slots = sum(len(counter.slots) for counter in self.counters.values())

    def __len__(self) -> int:
        return len(self.counters)

    def _count(self, key: str, window_s: int, now_s: int, amount: int) -> None:
        counter = self.counters.get(key)
        if counter is None:
            counter = self.counters[key] = Counter(window_s)
        before = len(counter.slots)
        counter.add(now_s, amount)
        self._slots += len(counter.slots) - before
        counter.used(now_s)

    def _book(self, charge: Charge, sign: int) -> None:
        for count in charge.counts:
            held = self._held.get(count.key, 0) + sign * count.amount
            if held:
                self._held[count.key] = held
            else:
                del self._held[count.key]

    def _check(self, charge: Charge) -> None:
        """Raises `Refused` unless `charge` can be taken now."""
        self._expire()
        for count in charge.counts:
            if count.most is not None and self.used(count.key) + count.amount > count.most:
                name = count.key.partition(" ")[0]
                raise Refused("policy/limits", f"the limit {name} has no room left: other requests were quicker")
        self._check_room(charge.counts)

    def _reach(self, destinations: Iterable[str]) -> None:
        for destination in destinations:
            self.destinations.pop(destination, None)
            self.destinations[destination] = None
        while len(self.destinations) > MAX_DESTINATIONS:
            del self.destinations[next(iter(self.destinations))]

    def _check_room(self, counts: tuple[Count, ...]) -> None:
        """SPEC 7.7. Raises `Refused` where memory, or the sealed record, would grow beyond its bound."""
        if self._has_room(counts):
            return
        now_s = self.clock.now_s()
        if now_s >= self._next_sweep_s:
            self._next_sweep_s = now_s + SWEEP_EVERY_S
            self.sweep(now_s)
        if not self._has_room(counts):
            raise Refused("policy/limits", "too many counters: use shorter windows, or count fewer things apart")

    def _has_room(self, counts: tuple[Count, ...]) -> bool:
        new = len({count.key for count in counts} - self.counters.keys())
        if len(self.counters) + new > MAX_COUNTERS:
            return False
        return self._slots + len(counts) <= MAX_SLOTS

    def _expire(self) -> None:
        """Authorizations expire in about the order in which they were made."""
        now_s = self._wall_clock()
        while self._holds:
            request = next(iter(self._holds))
            if self._holds[request].until_s > now_s:
                return
            self.release(request)


class _Used(Mapping[str, int]):
    """The ledger's counters as a decision reads them, without what is the request's `own`."""

    def __init__(self, ledger: Ledger, own: Mapping[str, int]) -> None:
        self._ledger, self._own = ledger, own

    def __getitem__(self, key: str) -> int:
        # Some of its own may have left the window.
        return max(0, self._ledger.used(key) - self._own.get(key, 0))

    def __iter__(self) -> Iterator[str]:
        return iter(self._ledger.counters)

    def __len__(self) -> int:
        return len(self._ledger.counters)
