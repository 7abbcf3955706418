"""SPEC 7.2: the time by which limits count. It follows what has passed, not what a clock is set to meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Anchor(NamedTuple):
    """What the counted time was, in seconds, when the wall clock said so much."""

    counted_s: int
    wall_s: int


class CountingClock:
    """Goes on with the time that passes; while no process runs, the wall clock says how much that is. One for the whole
    life of a process."""

    def __init__(self, wall: Callable[[], float], elapsed: Callable[[], float]) -> None:
        """`elapsed`: seconds that no setting of a clock moves, suspension included."""
        self._wall, self._elapsed = wall, elapsed
        self._start_wall_s, self._start_s = wall(), elapsed()
        self._counted_at_start_s, self._anchored = self._start_wall_s, False

    def go_on_from(self, anchor: Anchor | None) -> None:
        """Continue what an earlier process counted; once. None: nothing was counted yet."""
        if anchor is not None and not self._anchored:
            # A clock that was set back says nothing of how long the process was away.
            away_s = max(0.0, self._start_wall_s - anchor.wall_s)
            self._counted_at_start_s = anchor.counted_s + away_s
        self._anchored = True

    def now_s(self) -> int:
        """The counted time: Unix time, but for what clocks were set forward or back since the first charge."""
        return int(self._counted_at_start_s + self._elapsed() - self._start_s)

    def now(self) -> Anchor:
        """The counted time and what the wall clock says."""
        return Anchor(self.now_s(), int(self._wall()))
