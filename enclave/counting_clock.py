"""SPEC 7.2: the time by which limits count. It follows what has passed, not what the wall clock is set to meanwhile."""

from __future__ import annotations

from collections.abc import Callable

MAX_AHEAD_S = 60


class CountingClock:
    """Starts at the wall clock, goes on with the time that passes. One for the whole life of a process."""

    def __init__(self, wall: Callable[[], float], elapsed: Callable[[], float]) -> None:
        """`elapsed`: seconds that no setting of a clock moves, suspension included."""
        self._wall, self._elapsed = wall, elapsed
        self._offset_s = wall() - elapsed()

    def now_s(self) -> int:
        """Unix time, as far as this process knows by itself."""
        return int(self._elapsed() + self._offset_s)

    def trouble(self) -> str:
        """Why nothing can be counted now; empty where all is well. A wall clock that was set back is no trouble."""
        ahead_s = self._wall() - (self._elapsed() + self._offset_s)
        if ahead_s <= MAX_AHEAD_S:
            return ""
        return f"the clock was set forward by {ahead_s:.0f} s: if it is right now, restart this enclave"
