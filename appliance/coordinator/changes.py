"""Waking up whoever waits for the state of signers, links or pools to change."""

from __future__ import annotations

import asyncio


class Changes:
    """One source of change. Take `next` before looking at the state, so that no change is slept through."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """What is set at the next change from now on."""
        return self._event

    def notify(self) -> None:
        """Wake up everybody who waits now."""
        self._event.set()
        self._event = asyncio.Event()
