"""The enclave's log: one JSON object a line on standard error. Facts given by the caller, nothing taken by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import msgspec

from policies.lines import STANDARD_ERROR, LineSink

Fact = str | int | float | bool


class Log:
    """Writes structured lines; fields are plain facts (never a secret: callers pass names, counts and reasons).

    No method raises: a log that cannot be written must not end the enclave. `write` takes each line.
    """

    def __init__(self, process: str, write: Callable[[str], None] | None = None, **always: Fact) -> None:
        self._always: dict[str, Fact] = {"process": process, **always}
        self._write_line = write or LineSink(STANDARD_ERROR, self._lost).write

    def info(self, event: str, **facts: Fact) -> None:
        """Something an operator may want to see."""
        self._write_line(self._line("info", event, facts))

    def warning(self, event: str, **facts: Fact) -> None:
        """Something an operator should look at."""
        self._write_line(self._line("warning", event, facts))

    def error(self, event: str, **facts: Fact) -> None:
        """Something that keeps the enclave from working."""
        self._write_line(self._line("error", event, facts))

    def _line(self, level: str, event: str, facts: dict[str, Fact]) -> str:
        line = {
            "time": round(time.time(), 3),
            "level": level,
            "event": event,
            **self._always,
            **facts,
        }
        try:
            return msgspec.json.encode(line).decode()
        except UnicodeEncodeError:  # a lone surrogate, as in the name of a file
            return json.dumps(line)

    def _lost(self, count: int) -> str:
        reason = f"{count} lines could not be written: see whether the log's disk was full"
        return self._line("warning", "log lines lost", {"count": count, "reason": reason})
