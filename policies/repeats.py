"""Which of many like log lines are worth writing, so that neither a retry nor a stranger can fill a disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

MAX_SUBJECTS = 256
REMIND_S = 600.0


class Repeats:
    """What fails again and again is told when it begins, when it changes, and every `remind_s` while it lasts."""

    def __init__(self, clock: Callable[[], float], remind_s: float = REMIND_S) -> None:
        """`clock`: monotonic seconds."""
        self._clock, self._remind_s = clock, remind_s
        # By subject: what was told last, when, and how often it was the case since.
        self._told: OrderedDict[str, tuple[str, float, int]] = OrderedDict()

    def due(self, subject: str, said: str) -> int | None:
        """How often it was passed over since it was told last, where it is to be told now; None where it is not."""
        now_s = self._clock()
        told = self._told.get(subject)
        if told is not None and told[0] == said and now_s - told[1] < self._remind_s:
            self._told[subject] = (said, told[1], told[2] + 1)
            return None
        self._told[subject] = (said, now_s, 0)
        self._told.move_to_end(subject)
        if len(self._told) > MAX_SUBJECTS:
            self._told.popitem(last=False)
        return told[2] if told is not None else 0

    def over(self, subject: str) -> bool:
        """It is well again: whether that is worth telling."""
        return self._told.pop(subject, None) is not None


STRANGERS_TOLD_PER_S, STRANGERS_TOLD_AT_ONCE = 2.0, 100


class Allowance:
    """At most `burst` at once and `per_s` in the long run."""

    def __init__(self, clock: Callable[[], float], per_s: float, burst: int) -> None:
        """`clock`: monotonic seconds."""
        self._clock, self._per_s, self._burst = clock, per_s, float(burst)
        self._left, self._at_s, self._passed_over = float(burst), clock(), 0

    def take(self) -> int | None:
        """How many were passed over since the last one, where there is room for one more; None where there is not."""
        now_s = self._clock()
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1.0:
            self._passed_over += 1
            return None
        self._left -= 1.0
        passed_over, self._passed_over = self._passed_over, 0
        return passed_over

    def not_told(self) -> dict[str, int] | None:
        """What the line says of those that were passed over, where there is room for it; None where there is not."""
        passed_over = self.take()
        return None if passed_over is None else {"not_told": passed_over} if passed_over else {}


def of_strangers(clock: Callable[[], float]) -> Allowance:
    """For lines that anybody can cause."""
    return Allowance(clock, STRANGERS_TOLD_PER_S, STRANGERS_TOLD_AT_ONCE)
