"""How often the interpreter looks for reference cycles in a process that serves for months."""

from __future__ import annotations

import gc

NEW_OBJECTS = 20_000
"""A look at the young objects after so many more were made: Python's own 700 are few for what one signature makes."""


def settle() -> None:
    """Call when a process has loaded what it works with: that stays, and no later look goes through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS)
