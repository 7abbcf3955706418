"""How long things took, counted in buckets, for metrics. Cheap: an observation is a search in a short tuple."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

# 100 µs to 60 s.
BOUNDS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Durations:
    """How long something took, in seconds, counted in buckets up to `bounds_s`. One thread observes."""

    def __init__(self, bounds_s: Sequence[float] = BOUNDS_S) -> None:
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(self._bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus has them: upper bound and count."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds_s), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class DurationsBy:
    """Durations by a label's value, of which there must be few."""

    def __init__(self) -> None:
        self.by_label: dict[str, Durations] = {}

    def observe(self, label: str, seconds: float) -> None:
        """Count one."""
        durations = self.by_label.get(label)
        if durations is None:
            durations = self.by_label[label] = Durations()
        durations.observe(seconds)
