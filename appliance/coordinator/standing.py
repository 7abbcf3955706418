"""Which signers are left out of committees, where others can stand in: for a while those that failed or were slow, and
until they are readmitted those that were convicted.

Nothing here accuses anybody: a signer that failed is asked again after a time, and at once where it is needed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

# Left out so long after a failure, doubling with each one that follows.
FIRST_AVOIDED_S, LONGEST_AVOIDED_S = 15.0, 480.0
# An answer of the online step lags if it takes more than this, and more than so many times the median of its committee:
# all members were asked at the same moment, so what keeps everybody busy counts against nobody.
LAG_FROM_S, LAG_FACTOR = 0.25, 4.0
# Slow: so large a part of the newest answers lags, and has done so for so long. Under load an honest signer is now the
# first to answer and now the last.
SLOW_SHARE, SLOW_FOR_S = 0.75, 5.0
WEIGHT_OF_NEWEST = 0.2
MIN_ANSWERS = 8
# Ends of a ceremony that say something about the signer they name.
# A signer that reports `ceremony/…` has found a fault, and may be the one who was wronged: its enclave names culprits
# where it can (`convictions`).
TELLING_CODES = frozenset({"timeout", "signer-away", "unavailable", "flood", "unexpected-report", "online-refused"})
# Those of batches (`suspicions`): good answers of the online step do not make up for them, so many good batches do.
BATCH_CODES = frozenset({"split-group", "unfinished-batch"})
MIN_BATCHES = 8


@dataclass
class _Pace:
    """A signer's newest answers: how many, which part of them lags, and since when that part is too large."""

    answers: int = 0
    lagging: float = 0.0
    slow_since_s: float | None = None

    def note(self, lags: bool, now_s: float) -> None:
        """One more answer."""
        self.answers += 1
        self.lagging += WEIGHT_OF_NEWEST * (lags - self.lagging)
        if self.lagging <= SLOW_SHARE:
            self.slow_since_s = None
        elif self.slow_since_s is None:
            self.slow_since_s = now_s


class Standing:
    """Answers and failures of each signer. `clock`: monotonic seconds; `convicted()`: who is convicted now;
    `tell(index, why, seconds)`: this signer is left out for so long."""

    def __init__(
        self,
        clock: Callable[[], float],
        convicted: Callable[[], frozenset[int]] = frozenset,
        tell: Callable[[int, str, float], None] = lambda _index, _why, _seconds: None,
    ) -> None:
        self._clock, self._convicted, self._tell = clock, convicted, tell
        self._failures: dict[int, int] = {}
        self._batch_failures: dict[int, int] = {}
        self._good_batches: Counter[int] = Counter()
        self._avoided_until_s: dict[int, float] = {}
        self._paces: dict[int, _Pace] = {}

    def failed(self, index: int, code: str) -> None:
        """A ceremony ended with `code`, which names signer `index` (0: nobody)."""
        if index and code in TELLING_CODES | BATCH_CODES:
            self._avoid(index, code)

    def presigned(self, committee: Iterable[int]) -> None:
        """A batch of this committee is done."""
        for index in committee:
            self._good_batches[index] += 1
            if self._good_batches[index] >= MIN_BATCHES:
                self._batch_failures.pop(index, None)

    def answered(self, took_s: Mapping[int, float]) -> None:
        """Every member of a committee has answered one step, after so many seconds each."""
        limit_s, now_s = LAG_FROM_S, self._clock()
        if max(took_s.values()) > LAG_FROM_S:
            limit_s = max(LAG_FROM_S, LAG_FACTOR * statistics.median_low(took_s.values()))
        avoided = self.avoided()
        for index, seconds in took_s.items():
            lags, pace = seconds > limit_s, self._paces.setdefault(index, _Pace())
            pace.note(lags, now_s)
            if lags and pace.slow_since_s is not None and now_s - pace.slow_since_s >= SLOW_FOR_S:
                # It is measured anew when it is asked again.
                del self._paces[index]
                self._avoid(index, "slow")
            elif pace.answers >= MIN_ANSWERS and index not in avoided:
                self._failures.pop(index, None)

    def avoided(self) -> frozenset[int]:
        """The signers to leave out now."""
        if not self._avoided_until_s:
            return self._convicted()
        now_s = self._clock()
        failed = frozenset(index for index, until_s in self._avoided_until_s.items() if until_s > now_s)
        return failed | self._convicted()

    def without_avoided(self, indices: Iterable[int], needed: int) -> tuple[int, ...]:
        """These without the ones to leave out. Where fewer than `needed` would be left, those that failed least come
        back, and the convicted ones last."""
        everybody, avoided = tuple(indices), self.avoided()
        if not avoided:
            return everybody
        convicted = self._convicted()
        good = {index for index in everybody if index not in avoided}
        others = sorted(set(everybody) - good, key=lambda index: (index in convicted, self._troubles(index), index))
        good.update(others[: max(needed - len(good), 0)])
        return tuple(index for index in everybody if index in good)

    def _troubles(self, index: int) -> int:
        return self._failures.get(index, 0) + self._batch_failures.get(index, 0)

    def _avoid(self, index: int, why: str) -> None:
        now_s = self._clock()
        if self._avoided_until_s.get(index, 0.0) > now_s:
            return  # the same trouble, seen by another request
        counted = self._batch_failures if why in BATCH_CODES else self._failures
        failures = counted[index] = counted.get(index, 0) + 1
        if why in BATCH_CODES:
            self._good_batches[index] = 0
        pause_s = min(FIRST_AVOIDED_S * 2.0 ** min(failures - 1, 16), LONGEST_AVOIDED_S)
        self._avoided_until_s[index] = now_s + pause_s
        self._tell(index, why, pause_s)
