"""Which signers are left out of committees, where others can stand in: for a while those that failed or were slow, and
until they are readmitted those that were convicted.

Nothing here accuses anybody: a signer that failed is asked again after a time, and at once where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

# Left out so long after a failure, doubling with each one that follows.
FIRST_AVOIDED_S, LONGEST_AVOIDED_S = 15.0, 480.0
# Slow: a mean answer of the online step takes more than this, and more than so many times that of the quickest.
SLOW_FROM_S, SLOW_FACTOR = 0.25, 4.0
WEIGHT_OF_NEWEST = 0.2
MIN_ANSWERS = 8
# Ends of a ceremony that say something about the signer they name.
# A signer that reports `ceremony/…` has found a fault, and may be the one who was wronged: its enclave names culprits
# where it can (`convictions`).
TELLING_CODES = frozenset({"timeout", "signer-away", "unavailable", "flood", "unexpected-report", "online-refused"})


class Standing:
    """Answers and failures of each signer. `clock`: monotonic seconds; `convicted()`: who is convicted now."""

    def __init__(self, clock: Callable[[], float], convicted: Callable[[], frozenset[int]] = frozenset) -> None:
        self._clock, self._convicted = clock, convicted
        self._failures: dict[int, int] = {}
        self._avoided_until_s: dict[int, float] = {}
        self._mean_s: dict[int, tuple[float, int]] = {}

    def failed(self, index: int, code: str) -> None:
        """A ceremony ended with `code`, which names signer `index` (0: nobody)."""
        if index and code in TELLING_CODES:
            self._avoid(index)

    def answered(self, took_s: Mapping[int, float]) -> None:
        """Every member of a committee has answered one step, after so many seconds each."""
        for index, seconds in took_s.items():
            mean_s, count = self._mean_s.get(index, (seconds, 0))
            self._mean_s[index] = (mean_s + WEIGHT_OF_NEWEST * (seconds - mean_s), count + 1)
        quickest_s = min(mean_s for mean_s, _ in self._mean_s.values())
        for index in took_s:
            mean_s, count = self._mean_s[index]
            if count >= MIN_ANSWERS and mean_s > max(SLOW_FROM_S, SLOW_FACTOR * quickest_s):
                # It is measured anew when it is asked again.
                del self._mean_s[index]
                self._avoid(index)
            elif count >= MIN_ANSWERS and index not in self.avoided():
                self._failures.pop(index, None)

    def avoided(self) -> frozenset[int]:
        """The signers to leave out now."""
        now_s = self._clock()
        failed = frozenset(index for index, until_s in self._avoided_until_s.items() if until_s > now_s)
        return failed | self._convicted()

    def without_avoided(self, indices: Iterable[int], needed: int) -> tuple[int, ...]:
        """These without the ones to leave out; without the convicted ones, or all of them, where fewer than `needed`
        would be left."""
        everybody = tuple(indices)
        for left_out in (self.avoided(), self._convicted()):
            good = tuple(index for index in everybody if index not in left_out)
            if len(good) >= needed:
                return good
        return everybody

    def _avoid(self, index: int) -> None:
        now_s = self._clock()
        if self._avoided_until_s.get(index, 0.0) > now_s:
            return  # the same trouble, seen by another request
        failures = self._failures[index] = self._failures.get(index, 0) + 1
        pause_s = min(FIRST_AVOIDED_S * 2.0 ** min(failures - 1, 16), LONGEST_AVOIDED_S)
        self._avoided_until_s[index] = now_s + pause_s
