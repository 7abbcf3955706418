"""Log lines that never end a process: what cannot be written (a full disk) is counted, and told once there is room."""

from __future__ import annotations

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
        """Write `line`, which holds no line break."""
        lines = [self._tell_lost(self._lost), line] if self._lost else [line]
        text = "".join(one + "\n" for one in lines)
        data = memoryview((("\n" if self._cut else "") + text).encode("utf-8", "backslashreplace"))
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            self._lost += 1
            self._cut = self._cut or written > 0
        else:
            self._lost, self._cut = 0, False
