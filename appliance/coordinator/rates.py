"""How much one client may take: token buckets and places, for a bounded number of names."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from policies.errors import KeymootError

MAX_NAMES = 4096


class Limited(KeymootError):
    """Too much at once, or too often; `retry_after_s` says when it is worth trying again. `code` is stable."""

    def __init__(self, code: str, detail: str, retry_after_s: int) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.retry_after_s = code, detail, retry_after_s


class Rates:
    """A token bucket for each name: `per_s` on average, `burst` at once. `clock`: seconds, monotonic.

    Of more than `MAX_NAMES` the one that asked least lately is forgotten.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str) -> None:
        """One more of `name`. Raises `Limited` where it has had enough."""
        left, now_s = self._left(name)
        if left < 1:
            raise self._limited(left)
        self._buckets[name] = (left - 1, now_s)
        self._buckets.move_to_end(name)
        if len(self._buckets) > MAX_NAMES:
            self._buckets.popitem(last=False)

    def check(self, name: str) -> None:
        """Whether `take` would pass. Raises `Limited`."""
        left, _ = self._left(name)
        if left < 1:
            raise self._limited(left)

    def _left(self, name: str) -> tuple[float, float]:
        now_s = self._clock()
        left, since_s = self._buckets.get(name, (self._burst, now_s))
        return min(self._burst, left + (now_s - since_s) * self._per_s), now_s

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
