"""SPEC 7.2: the time by which limits count. It follows what has passed, not what a clock is set to meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from enclave.errors import Bug


class Anchor(NamedTuple):
    """What the counted time was, in seconds, when the wall clock said so much. `peers_s`: the peers' time (SPEC 7.8)
    that goes with `counted_s` where counted time was furthest behind it, now or earlier; None: not known."""

    counted_s: int
    wall_s: int
    peers_s: int | None = None

    def behind_s(self) -> float:
        """By how much counted time was furthest behind the peers'; nothing is less than what is not known."""
        return -math.inf if self.peers_s is None else self.peers_s - self.counted_s

    def facts(self) -> dict[str, int | list[str]]:
        """For the audit entry of this moment, which says the wall clock itself."""
        facts: dict[str, int | list[str]] = {"counted_at": self.counted_s}
        return facts if self.peers_s is None else {**facts, "peers_at": self.peers_s}


class CountingClock:
    """Goes on with the time that passes; while no process runs, the wall clock and the peers' both say how much that
    is, and the lesser counts. One for the whole life of a process."""

    def __init__(self, wall: Callable[[], float], elapsed: Callable[[], float]) -> None:
        """`elapsed`: seconds that no setting of a clock moves, suspension included."""
        self._wall, self.elapsed_s = wall, elapsed
        self._start_wall_s, self._start_s = wall(), elapsed()
        self._counted_at_start_s, self._anchored = self._start_wall_s, False
        # Peers' time without the elapsed time. The least that counted time was ahead of peers' time, in this process or
        # an earlier one: a clock that was set may let it fall further behind, and nothing lets it catch up.
        self._peers_s: float | None = None
        self._lead_s: int | None = None

    def hear(self, peers_s: float) -> None:
        """SPEC 7.8: the peers' clocks agree: their time is `peers_s` more than the elapsed time."""
        self._peers_s = peers_s

    def go_on_from(self, anchor: Anchor | None) -> None:
        """Continue what an earlier process counted; once, and not before the peers were heard. None: nothing was
        counted yet."""
        if self._peers_s is None:
            raise Bug("how long this process was away is not known before its peers have said it")
        if anchor is not None and not self._anchored:
            # It was told in whole seconds, begun ones not counted: a process was never away for less than this.
            away_s = self._start_wall_s - (anchor.wall_s + 1)
            if anchor.peers_s is not None:
                away_s = min(away_s, self._peers_s + self._start_s - anchor.peers_s)
            # A clock that was set back says nothing of how long the process was away.
            self._counted_at_start_s = anchor.counted_s + max(0.0, away_s)
        if anchor is not None and anchor.peers_s is not None:
            self._fall_behind(anchor.counted_s - anchor.peers_s)
        self._anchored = True

    def now_s(self) -> int:
        """The counted time: Unix time, but for what clocks were set forward or back since the first charge."""
        return int(self._counted_at_start_s + self.elapsed_s() - self._start_s)

    def now(self) -> Anchor:
        """The counted time, what the wall clock says, and what goes with it of the peers' time."""
        counted_s = self.now_s()
        if self._peers_s is not None:
            self._fall_behind(counted_s - math.ceil(self._peers_s + self.elapsed_s()))
        return Anchor(counted_s, int(self._wall()), None if self._lead_s is None else counted_s - self._lead_s)

    def _fall_behind(self, lead_s: int) -> None:
        self._lead_s = lead_s if self._lead_s is None else min(self._lead_s, lead_s)
