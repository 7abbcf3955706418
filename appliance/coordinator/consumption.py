"""How fast presignatures are used, and which marks a pool needs for it. Times are on a monotonic clock, in seconds."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60.0
BUCKET_S = 2.0


class Consumption:
    """What was spent of one committee's pool in the last minute, and in the busiest one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._started_s = clock, clock()
        # Number and count of each bucket of BUCKET_S in which something was spent; at most 30.
        self._buckets: deque[tuple[int, int]] = deque()
        self._in_window = 0
        self.busiest_minute = 0

    def note(self) -> None:
        """One was spent."""
        number = int(self._clock() // BUCKET_S)
        self._forget(number)
        before = self._buckets.pop()[1] if self._buckets and self._buckets[-1][0] == number else 0
        self._buckets.append((number, before + 1))
        self._in_window += 1
        self.busiest_minute = max(self.busiest_minute, self._in_window)

    def per_s(self) -> float:
        """Spent per second: over the last minute, or since the start where that is less."""
        now_s = self._clock()
        self._forget(int(now_s // BUCKET_S))
        return self._in_window / max(min(now_s - self._started_s, WINDOW_S), BUCKET_S)

    def _forget(self, number: int) -> None:
        while self._buckets and self._buckets[0][0] <= number - WINDOW_S / BUCKET_S:
            self._in_window -= self._buckets.popleft()[1]


@dataclass(frozen=True)
class Marks:
    """Below `low` a pool is filled, up to `high`."""

    low: int
    high: int


def recommended(burst: int, spent_per_s: float, batch: int, batch_s: float, most: int) -> Marks:
    """Marks with which `burst` signatures at once find their presignatures, while others use `spent_per_s`.

    A refill that begins at `low` gives its first presignatures `batch_s` later: until then burst and consumption live
    on what is there. `high` leaves one batch above that, so that batches are whole. Neither is above `most`.
    """
    low = min(max(burst, 0) + math.ceil(spent_per_s * batch_s), most)
    return Marks(max(low, 1), min(max(low, 1) + batch, most))
