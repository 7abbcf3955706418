"""Waiting in line: who came first is served first, and who gives up lets the next one pass."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Line:
    """A queue of tasks. It is bounded by whoever admits them."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Stand in line; the block runs once everybody before has left it. Cancelling leaves the line."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            if self._waiting[0] is not place:
                await place
            yield
        finally:
            self._waiting.remove(place)
            if self._waiting and not self._waiting[0].done():
                self._waiting[0].set_result(None)
