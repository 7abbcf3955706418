"""What was signed so far, as a decision sees it, and what a decision adds to it. Values: nothing here changes.

A counter's key is the limit's name, its window and what it counts apart, such as `payouts 3600s label=treasury/eth`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import msgspec

from policies.limits import Anomaly

# What one request may add to: with the longest names it still fits into one audit entry.
MAX_COUNTS = 18


class Counters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`used`: by counter, what counts at present. `seen`: destinations signed for before. `observed`: anomalies that
    are none of the request's own. `unknown`: why nothing is known; what needs it is refused then. `clock_doubt`: why
    the time of a decision is not to be believed; rules with `hours` permit nothing then."""

    used: Mapping[str, int] = {}
    seen: Set[str] = frozenset()
    observed: Set[Anomaly] = frozenset()
    unknown: str = ""
    clock_doubt: str = ""


class Count(msgspec.Struct, frozen=True):
    """`amount` more in the counter `key`, which forgets it `window_s` later, and may not hold more than `most` with it
    (None: it only watches)."""

    key: str
    window_s: int
    amount: int
    most: int | None


class Charge(msgspec.Struct, frozen=True):
    """What a permitted request adds once it is signed: counts, and destinations it goes to."""

    counts: tuple[Count, ...] = ()
    destinations: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.counts or self.destinations)

    def plus(self, other: Charge) -> Charge:
        """Both: counts of one key are added up."""
        counts = {count.key: count for count in self.counts}
        for count in other.counts:
            known = counts.get(count.key)
            amount = count.amount + (known.amount if known is not None else 0)
            counts[count.key] = msgspec.structs.replace(count, amount=amount)
        destinations = dict.fromkeys((*self.destinations, *other.destinations))
        return Charge(tuple(counts.values()), tuple(destinations))


NOTHING = Charge()
