"""Waking up whoever waits for the state of signers, links or pools to change."""

from __future__ import annotations

import asyncio


class Changes:
    """One source of change. Look at the state first, then `wait`, without awaiting anything in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake up everybody who waits now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Until the next change."""
        await self._event.wait()
