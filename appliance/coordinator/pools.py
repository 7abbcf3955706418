"""Which presignatures can be named: those that all members of a committee say they hold, and nobody has named yet.

The pools themselves are in the enclaves' memory; this is what their reports say. Naming reserves in this process only,
and a name that was spent is not named again, whatever is reported later of its batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from appliance.coordinator.changes import Changes
from appliance.coordinator.consumption import Consumption
from appliance.coordinator.errors import CeremonyEnded
from enclave import wire

MAX_BATCHES = 1024
MAX_COMMITTEES_WATCHED = 64


@dataclass
class Batch:
    """One batch. Bit `l-1` stands for presignature `l`, in what each member `holds`, in what is
    `reserved` by an attempt, and in what was `spent`."""

    sid: bytes
    committee: tuple[int, ...]
    count: int
    holds: dict[int, int] = field(default_factory=dict)
    reserved: int = 0
    spent: int = 0
    available: int = 0
    left: int = 0
    """How many are available."""

    @property
    def complete(self) -> bool:
        """Whether every member has said what it holds of it."""
        return len(self.holds) == len(self.committee)

    def update(self) -> None:
        """Work out what is available: what every member has said it holds, and nobody has named."""
        bits = ~(self.reserved | self.spent) if self.complete else 0
        for held in self.holds.values():
            bits &= held
        self.available, self.left = bits, bits.bit_count()

    def take(self) -> int:
        """The number of an available one, which is reserved now."""
        bit = self.available & -self.available
        self.reserved |= bit
        self.available ^= bit
        self.left -= 1
        return bit.bit_length()


class Pools:
    """All batches of this coordinator. `low`: below so many available ones of a committee, `changes` is told.
    `clock`: monotonic seconds."""

    def __init__(self, low: int, changes: Changes, clock: Callable[[], float] = time.monotonic) -> None:
        self._low, self._changes, self._clock = low, changes, clock
        self._consumption: dict[tuple[int, ...], Consumption] = {}
        self._batches: dict[bytes, Batch] = {}
        self._synced: set[int] = set()
        self._presigning: set[tuple[int, ...]] = set()

    # --- what is available ---

    def available(self, committee: tuple[int, ...]) -> int:
        """How many presignatures can be named now: none before every member has told what it holds."""
        if not self.synced(committee):
            return 0
        return sum([batch.left for batch in self._batches.values() if batch.committee == committee])

    def synced(self, members: Iterable[int]) -> bool:
        """Whether all of these have said what they hold, since they connected."""
        return self._synced.issuperset(members)

    def committees(self) -> set[tuple[int, ...]]:
        """Committees that have batches."""
        return {batch.committee for batch in self._batches.values()}

    def take(self, committee: tuple[int, ...]) -> wire.PresignatureName:
        """Name the next presignature, oldest batch first. Raises `CeremonyEnded` where there is none."""
        if self.synced(committee):
            for batch in self._batches.values():
                if batch.left and batch.committee == committee:
                    number = batch.take()
                    if not batch.left or self.available(committee) == self._low - 1:
                        self._changes.notify()
                    return wire.PresignatureName(batch.sid, number)
        raise CeremonyEnded("no-presignatures", "the pool of this committee is empty")

    def take_all(self, committee: tuple[int, ...], count: int) -> tuple[wire.PresignatureName, ...]:
        """Name the next `count` presignatures, or none: raises `CeremonyEnded` where there are fewer."""
        available = self.available(committee)
        if available < count:
            raise CeremonyEnded("no-presignatures", f"{count} are needed, the pool of this committee has {available}")
        return tuple(self.take(committee) for _ in range(count))

    def give_back(self, name: wire.PresignatureName) -> None:
        """A named presignature was not used: it can be named again, where it is still there."""
        self._release(name, spent=False)

    def spend(self, name: wire.PresignatureName) -> None:
        """A named presignature may be gone at some member: it is not named again."""
        self._release(name, spent=True)

    def _release(self, name: wire.PresignatureName, *, spent: bool) -> None:
        batch = self._batches.get(name.sid)
        if batch is None:
            return
        bit = 1 << (name.index - 1)
        batch.reserved &= ~bit
        if spent:
            batch.spent |= bit
            self.consumption(batch.committee).note()
        else:
            batch.update()
            self._changes.notify()
        self._drop_if_used_up(batch)

    def lacks(self, member: int, name: wire.PresignatureName) -> None:
        """`member` does not hold `name`: it is never named again until it says otherwise."""
        batch = self._batches.get(name.sid)
        if batch is not None and member in batch.holds:
            batch.holds[member] &= ~(1 << (name.index - 1))
            batch.update()
            self._drop_if_used_up(batch)

    def consumption(self, committee: tuple[int, ...]) -> Consumption:
        """How fast this committee's presignatures are spent."""
        found = self._consumption.get(committee)
        if found is None:
            while len(self._consumption) >= MAX_COMMITTEES_WATCHED:
                del self._consumption[next(iter(self._consumption))]
            found = self._consumption[committee] = Consumption(self._clock)
        return found

    def spent_lately(self) -> set[tuple[int, ...]]:
        """Committees of whose presignatures some were spent in the last minute."""
        return {committee for committee, consumption in self._consumption.items() if consumption.per_s()}

    def held(self, member: int) -> int:
        """How many presignatures `member` holds at most, as far as it is known here."""
        return sum(
            batch.holds[member].bit_count() if member in batch.holds else batch.count
            for batch in self._batches.values()
            if member in batch.committee
        )

    def give_up(self, members: set[int], kept: set[tuple[int, ...]]) -> tuple[bytes, tuple[int, ...]] | None:
        """Drop the oldest batch that shares one of `members`, whose committee is not `kept` and of which nothing is
        named now: its sid, and its committee, which is to forget it. None where there is none."""
        for sid, batch in self._batches.items():
            if members & set(batch.committee) and batch.committee not in kept and not batch.reserved:
                del self._batches[sid]
                return sid, batch.committee
        return None

    # --- what is reported ---

    def forget_member(self, member: int) -> None:
        """`member` has disconnected: what it holds is unknown until it says so."""
        self._synced.discard(member)
        self._changes.notify()

    def presigning(self, committee: tuple[int, ...], *, under_way: bool) -> None:
        """While a batch is being made, members report it one by one: that is not learned from `on_pools`."""
        (self._presigning.add if under_way else self._presigning.discard)(committee)

    def add(self, sid: bytes, committee: tuple[int, ...], count: int) -> None:
        """A batch is complete: every member has put it into its pool."""
        everything = (1 << count) - 1
        batch = Batch(sid, committee, count, dict.fromkeys(committee, everything))
        batch.update()
        self._batches[sid] = batch
        self._changes.notify()

    def on_pools(self, member: int, report: wire.Pools) -> list[tuple[bytes, tuple[int, ...]]]:
        """What `member` holds now. Returns the batches that it has lost, each with the others that still hold it.

        A report that contradicts what is known of a batch, or floods, counts as not holding it.
        """
        held = {state.sid: state for state in report.batches if self._is_plausible(member, state)}
        lost: list[tuple[bytes, tuple[int, ...]]] = []
        for batch in list(self._batches.values()):
            if member in batch.committee and batch.sid not in held:
                del self._batches[batch.sid]
                # One that is used up is not lost, and the others may be at its last presignatures now.
                if batch.available or not batch.complete:
                    lost.append((batch.sid, tuple(other for other in batch.holds if other != member)))
        for state in held.values():
            self._learn(member, state)
        self._synced.add(member)
        lost += self._incomplete()
        self._changes.notify()
        return lost

    def drop_all(self) -> None:
        """A new PRSS epoch: every batch is gone everywhere."""
        self._batches.clear()
        self._changes.notify()

    def _is_plausible(self, member: int, state: wire.BatchState) -> bool:
        known = self._batches.get(state.sid)
        if known is not None:
            return (known.committee, known.count) == (state.committee, state.count)
        return (
            member in state.committee and len(self._batches) < MAX_BATCHES and state.committee not in self._presigning
        )

    def _learn(self, member: int, state: wire.BatchState) -> None:
        batch = self._batches.get(state.sid)
        if batch is None:
            batch = self._batches[state.sid] = Batch(state.sid, state.committee, state.count)
        batch.holds[member] = int.from_bytes(state.remaining, "little") & ((1 << state.count) - 1)
        batch.update()
        self._drop_if_used_up(batch)

    def _incomplete(self) -> list[tuple[bytes, tuple[int, ...]]]:
        """Batches that some member has spoken about its pool without naming: lost ones, with their holders."""
        lost = []
        for batch in list(self._batches.values()):
            silent = set(batch.committee) - batch.holds.keys()
            if silent & self._synced:
                del self._batches[batch.sid]
                lost.append((batch.sid, tuple(batch.holds)))
        return lost

    def _drop_if_used_up(self, batch: Batch) -> None:
        # Until every member's word is there, nothing is known to be used up.
        if batch.complete and not batch.available and not batch.reserved:
            self._batches.pop(batch.sid, None)


class Reservation:
    """The presignature named for one attempt: given back at its end, unless it was spent."""

    def __init__(self, pools: Pools, committee: tuple[int, ...]) -> None:
        self._pools, self._committee = pools, committee
        self._name: wire.PresignatureName | None = pools.take(committee)

    @property
    def name(self) -> wire.PresignatureName:
        """The presignature. Raises `CeremonyEnded` where there is none any more."""
        if self._name is None:
            raise CeremonyEnded("no-presignatures", "this attempt has no presignature any more")
        return self._name

    def rename(self, member: int) -> None:
        """`member` does not hold this one: name another. Raises `CeremonyEnded` where there is none."""
        unknown, self._name = self.name, None
        self._pools.lacks(member, unknown)
        self._pools.give_back(unknown)
        self._name = self._pools.take(self._committee)

    def spend(self) -> None:
        """From now on it may be gone at some member."""
        self._pools.spend(self.name)
        self._name = None

    def release(self) -> None:
        """The attempt is over."""
        if self._name is not None:
            self._pools.give_back(self._name)
            self._name = None


class BatchReservation:
    """The presignatures named for one attempt of a batch, one for each hash: given back at its end, unless spent."""

    def __init__(self, pools: Pools, committee: tuple[int, ...], count: int) -> None:
        self._pools, self._committee = pools, committee
        self.names = pools.take_all(committee, count)

    def rename(self, unknown: dict[wire.PresignatureName, int]) -> None:
        """The member with this index does not hold this name: name others. Raises `CeremonyEnded`."""
        kept = tuple(name for name in self.names if name not in unknown)
        replaced, self.names = tuple(name for name in self.names if name in unknown), kept
        for name in replaced:
            self._pools.lacks(unknown[name], name)
            self._pools.give_back(name)
        self.names += self._pools.take_all(self._committee, len(replaced))

    def spend(self) -> None:
        """From now on they may be gone at some member."""
        names, self.names = self.names, ()
        for name in names:
            self._pools.spend(name)

    def release(self) -> None:
        """The attempt is over."""
        names, self.names = self.names, ()
        for name in names:
            self._pools.give_back(name)
