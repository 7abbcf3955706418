"""The enclave's log: one JSON object a line on standard error. Facts given by the caller, nothing taken by itself."""

from __future__ import annotations

import sys
import time
from typing import TextIO

import msgspec

Fact = str | int | float | bool


class Log:
    """Writes structured lines; fields are plain facts (never a secret: callers pass names, counts and reasons)."""

    def __init__(self, process: str, out: TextIO | None = None, **always: Fact) -> None:
        self._out = out or sys.stderr
        self._always: dict[str, Fact] = {"process": process, **always}

    def info(self, event: str, **facts: Fact) -> None:
        """Something an operator may want to see."""
        self._write("info", event, facts)

    def warning(self, event: str, **facts: Fact) -> None:
        """Something an operator should look at."""
        self._write("warning", event, facts)

    def error(self, event: str, **facts: Fact) -> None:
        """Something that keeps the enclave from working."""
        self._write("error", event, facts)

    def _write(self, level: str, event: str, facts: dict[str, Fact]) -> None:
        line = {
            "time": round(time.time(), 3),
            "level": level,
            "event": event,
            **self._always,
            **facts,
        }
        self._out.write(msgspec.json.encode(line).decode() + "\n")
        self._out.flush()
