"""Hours in which a rule permits: days of the week and times of day, in UTC, which has no summer time to doubt."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Annotated

import msgspec

from policies.mistakes import Mistake

MAX_HOURS = 32
_DAY_S = 24 * 3600
_EPOCH_WEEKDAY = 3  # the first of January 1970 was a Thursday


class Day(StrEnum):
    """Days of the week, the first being Monday."""

    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


WEEK = tuple(Day)


class Hours(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from"}, dict=True):
    """On each of `days`, `from` (inclusive) to `until` (exclusive), in UTC. Where `until` is earlier than `from`, it is
    of the next day: `{days: [fri], from: "22:00", until: "06:00"}` ends on Saturday."""

    days: Annotated[tuple[Day, ...], msgspec.Meta(min_length=1, max_length=len(Day))]
    start: Annotated[str, msgspec.Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$(?!\n)")]
    until: Annotated[str, msgspec.Meta(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$(?!\n)")]

    def __post_init__(self) -> None:
        if self.start == self.until:
            raise Mistake('`from` and `until` are the same: for a whole day write "00:00" and "24:00"', "until")

    @cached_property
    def _seconds(self) -> tuple[int, int]:
        start_s, until_s = (int(text[:2]) * 3600 + int(text[3:]) * 60 for text in (self.start, self.until))
        return start_s, until_s

    def cover(self, now_s: int) -> bool:
        """Whether `now_s` (Unix seconds) is within."""
        start_s, until_s = self._seconds
        second = now_s % _DAY_S
        today, yesterday = _weekday(now_s), _weekday(now_s - _DAY_S)
        if start_s < until_s:
            return today in self.days and start_s <= second < until_s
        return (today in self.days and second >= start_s) or (yesterday in self.days and second < until_s)


def show_hour(now_s: int) -> str:
    """`now_s` (Unix seconds) as these fields have it, such as `mon 08:00 UTC`."""
    minute = now_s % _DAY_S // 60
    return f"{_weekday(now_s)} {minute // 60:02}:{minute % 60:02} UTC"


def _weekday(now_s: int) -> Day:
    return WEEK[(now_s // _DAY_S + _EPOCH_WEEKDAY) % 7]


ManyHours = Annotated[tuple[Hours, ...], msgspec.Meta(max_length=MAX_HOURS)]
