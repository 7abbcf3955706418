"""How much one client may take: token buckets and places, for a bounded number of names."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from policies.errors import KeymootError

MAX_NAMES = 4096
# One token, but for what rounding takes of it.
WHOLE = 1 - 1e-6


class Limited(KeymootError):
    """Too much at once, or too often; `retry_after_s` says when it is worth trying again. `code` is stable."""

    def __init__(self, code: str, detail: str, retry_after_s: int) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.retry_after_s = code, detail, retry_after_s


class Rates:
    """A token bucket for each name: `per_s` on average, `burst` at once. `clock`: seconds, monotonic.

    Of more than `MAX_NAMES` the one with most left is forgotten, never one that has taken as much as the newcomer: who
    waits until it is forgotten gains nothing.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        # When each is full again, if nothing more is taken; and the same ordered, with entries that hold no more.
        self._full_at: dict[str, float] = {}
        self._order: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, name: str) -> None:
        """One more of `name`. Raises `Limited` where it has had enough."""
        left, now_s = self._left(name)
        if left < WHOLE:
            raise self._limited(left)
        full_at = max(now_s, self._full_at.get(name, now_s)) + 1 / self._per_s
        if name not in self._full_at and len(self._full_at) >= MAX_NAMES and not self._forgot_one(full_at):
            raise Limited("rate-limited", f"{MAX_NAMES} others ask too often", 1)
        self._full_at[name] = full_at
        heapq.heappush(self._order, (full_at, name))
        if len(self._order) > 4 * MAX_NAMES:
            self._order = [(at, known) for known, at in self._full_at.items()]
            heapq.heapify(self._order)

    def check(self, name: str) -> None:
        """Whether `take` would pass. Raises `Limited`."""
        left, _ = self._left(name)
        if left < WHOLE:
            raise self._limited(left)

    def _left(self, name: str) -> tuple[float, float]:
        now_s = self._clock()
        return self._burst - max(0.0, self._full_at.get(name, now_s) - now_s) * self._per_s, now_s

    def _forgot_one(self, full_at: float) -> bool:
        """Whether one that is full before `full_at` could be forgotten."""
        while self._order and self._order[0][0] < full_at:
            at, name = heapq.heappop(self._order)
            if self._full_at.get(name) == at:
                del self._full_at[name]
                return True
        return False

    def _limited(self, left: float) -> Limited:
        wait_s = max(1, math.ceil((1 - left) / self._per_s))
        return Limited("rate-limited", f"more than {self._per_s:g} requests a second", wait_s)


class Places:
    """At most `most` at once for each name."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._taken)

    @contextmanager
    def take(self, name: str) -> Iterator[None]:
        """One place, for the block. Raises `Limited` where there is none."""
        if self._taken[name] >= self._most:
            raise Limited("too-many-in-flight", f"{self._most} requests are under way already", 1)
        self._taken[name] += 1
        try:
            yield
        finally:
            self._taken[name] -= 1
            if not self._taken[name]:
                del self._taken[name]
