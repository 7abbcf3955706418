"""Signs that this memory was copied, frozen or put back: clocks that do not go on together, or a signal that says so.

A suspended machine shows in CLOCK_BOOTTIME, which goes on while CLOCK_MONOTONIC stands still. A snapshot put back shows
once somebody sets the wall clock right. A process or machine that was frozen shows as a loop that stood still. What
shows none of these (a snapshot put back whose clocks go on from where they stood) is told by SIGUSR1, which a rule of
udev sends when the VM generation id changes: Linux tells that through a netlink socket alone, and an enclave has none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from enclave.errors import KeymootError

MAX_WALL_STEP_S = 5.0
MAX_SUSPENDED_S = 0.5
# The loop goes around every second at least.
MAX_STANDSTILL_S = 60.0
# The clocks are read one after the other: where this process had to wait in between, they are read again.
MAX_READING_S = 0.05
READINGS = 5
_boottime = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class MemoryInDoubt(KeymootError):
    """There may be another copy of this memory: nothing that must be used once can be used any more.

    `forgotten_until_s`: Unix time up to which requests may have been decided that are forgotten now.
    """

    def __init__(self, reason: str, forgotten_until_s: float) -> None:
        super().__init__(reason)
        self.forgotten_until_s = forgotten_until_s


@dataclass(frozen=True)
class Clocks:
    """In seconds: Unix time, time without and with suspension."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    boottime: Callable[[], float] = _boottime

    def slewed(self) -> float:
        """By how many seconds the kernel has let all three run faster, or slower, than the machine's oscillator."""
        return self.monotonic() - time.clock_gettime(time.CLOCK_MONOTONIC_RAW)

    def read(self) -> tuple[float, float, float]:
        """All three as of one moment, within `MAX_READING_S`; on a machine too busy for that, the closest reading."""
        readings: list[tuple[float, tuple[float, float, float]]] = []
        for _ in range(READINGS):
            before_s = self.monotonic()
            reading = self.wall(), before_s, self.boottime()
            took_s = self.monotonic() - before_s
            if took_s <= MAX_READING_S:
                return reading
            readings.append((took_s, reading))
        return min(readings)[1]


class ClockWatch:
    """Compares the clocks with what they were at the last look."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._signalled = False
        self._last = clocks.read()
        self._highest_wall_s = self._last[0]

    def signal(self) -> None:
        """The machine says that its memory was copied or put back: the next `check` raises."""
        self._signalled = True

    def check(self) -> None:
        """Raises `MemoryInDoubt`, once for each reason. Call it before anything is done for anybody."""
        wall_before_s, monotonic_before_s, boottime_before_s = self._last
        self._last = wall_s, monotonic_s, boottime_s = self._clocks.read()
        if wall_s > self._highest_wall_s:
            self._highest_wall_s = wall_s
        passed_s = monotonic_s - monotonic_before_s
        stepped_s = (wall_s - wall_before_s) - passed_s
        suspended_s = (boottime_s - boottime_before_s) - passed_s
        reason = ""
        if self._signalled:
            reason = "the machine says that its memory was copied or put back (SIGUSR1)"
        elif suspended_s > MAX_SUSPENDED_S:
            reason = f"this machine was suspended for {suspended_s:.0f} s"
        elif abs(stepped_s) > MAX_WALL_STEP_S:
            reason = f"the clock was set {'forward' if stepped_s > 0 else 'back'} by {abs(stepped_s):.0f} s"
        elif passed_s > MAX_STANDSTILL_S:
            reason = f"this process stood still for {passed_s:.0f} s"
        if reason:
            self._signalled = False
            raise MemoryInDoubt(reason, self._highest_wall_s)
