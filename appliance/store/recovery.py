"""Whether a store takes writes now: told once when it stops, tried again until it does, told once when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from appliance.store.failures import StoreFailed

FIRST_TRY_S, LONGEST_PAUSE_S = 0.25, 5.0

log = structlog.get_logger()


class Recovery:
    """The state of one store. `failure`: why it does not take writes, None while it does."""

    def __init__(self, probe: Callable[[], Awaitable[None]]) -> None:
        """`probe` writes something small, and raises `StoreFailed` where that does not reach the disk."""
        self._probe = probe
        self._works = asyncio.Event()
        self._works.set()
        self._trying: asyncio.Task[None] | None = None
        self.failure: StoreFailed | None = None
        self.on_broken: Callable[[StoreFailed], None] = lambda _: None

    def note(self, failure: StoreFailed | None) -> None:
        """A write has ended. The first failure is logged and starts the tries; `on_broken` is told of a lasting one."""
        if failure is None:
            if self.failure is not None and not self.failure.lasting:
                self.failure = None
                self._works.set()
                log.info("store-works-again")
            return
        known, self.failure = self.failure, failure
        if known is None:
            self._works.clear()
            log.error("store-failed", reason=str(failure)[:512], lasting=failure.lasting)
        if failure.lasting:
            self._works.set()
            if known is None or not known.lasting:
                self.on_broken(failure)
        elif self._trying is None or self._trying.done():
            self._trying = asyncio.create_task(self._try())

    async def until_it_works(self) -> None:
        """Returns once the store takes writes. Raises `StoreFailed` where only a restart can help."""
        await self._works.wait()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Stop trying."""
        if self._trying is not None:
            self._trying.cancel()

    async def _try(self) -> None:
        pause_s = FIRST_TRY_S
        while self.failure is not None and not self.failure.lasting:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                await self._probe()
            except StoreFailed as failure:
                self.note(failure)
            else:
                self.note(None)
