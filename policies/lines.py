"""Log lines that never end a process: what cannot be written (a full disk) is counted, and told once there is room."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

STANDARD_ERROR = 2


class LineSink:
    """Writes whole lines to a file descriptor. Nothing raises, nothing is kept: a line that does not fit is lost."""

    def __init__(self, descriptor: int, tell_lost: Callable[[int], str]) -> None:
        """`tell_lost(count)`: the line that says how many were lost; it stands before the next that can be written."""
        self._descriptor, self._tell_lost = descriptor, tell_lost
        self._lost = 0
        self._cut = False  # the file ends within a line

    def write(self, line: str) -> None:
        """Write `line` of JSON, which holds no line break. What a terminal would act on is escaped: strangers may have
        written it."""
        text = escaped(line) + "\n"
        if self._lost:
            text = escaped(self._tell_lost(self._lost)) + "\n" + text
        data = ("\n" + text if self._cut else text).encode("utf-8", "backslashreplace")
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            self._lost += 1
            self._cut = self._cut or written > 0
        else:
            self._lost, self._cut = 0, False


def escaped(line: str) -> str:
    """`line` of JSON with everything that is not printable as `\\uXXXX`: controls, marks of direction, odd spaces."""
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)
