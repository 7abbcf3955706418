"""Times as they are shown: ISO 8601 in, `3 min` out."""

from __future__ import annotations

import datetime

WARN_BELOW_DAYS = 30
_UNITS = ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s"))


def parse(text: str) -> datetime.datetime | None:
    """The moment that an ISO 8601 text with a zone names; None for anything else."""
    try:
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def duration(seconds: float) -> str:
    """A length of time in its largest unit of which there are two."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return "1 s" if seconds >= 1 else "0 s"


def ago(text: str | None, now: datetime.datetime) -> str:
    """How long ago an ISO 8601 moment was, empty where it is none."""
    moment = parse(text) if text else None
    return "" if moment is None else duration(max((now - moment).total_seconds(), 0.0))


def days_until(text: str | None, now: datetime.datetime) -> int | None:
    """Whole days until an ISO 8601 moment, negative once it is over; None where it is none."""
    moment = parse(text) if text else None
    return None if moment is None else int((moment - now).total_seconds() // 86_400)
