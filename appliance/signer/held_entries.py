"""Audit entries that nothing waits for: they go to the disk with the next commit, or soon by themselves."""

from __future__ import annotations

import asyncio

from enclave import wire

LONGEST_S = 0.25
MAX_HELD = 256


class HeldEntries:
    """Entries in the order of the chain. Whatever commits later ones takes these along, before its own."""

    def __init__(self) -> None:
        self._entries: list[wire.AuditEntry] = []
        self._some = asyncio.Event()
        self._full = asyncio.Event()

    def put(self, entries: tuple[wire.AuditEntry, ...]) -> None:
        """Hold `entries` for the next commit."""
        self._entries.extend(entries)
        if self._entries:
            self._some.set()
        if len(self._entries) >= MAX_HELD:
            self._full.set()

    def take(self, then: tuple[wire.AuditEntry, ...] = ()) -> tuple[wire.AuditEntry, ...]:
        """All that is held, and `then` what comes after it: for one commit."""
        taken, self._entries = (*self._entries, *then), []
        self._some.clear()
        self._full.clear()
        return taken

    async def due(self) -> None:
        """Returns when something has been held for `LONGEST_S`, or `MAX_HELD` entries are."""
        while not self._entries:
            await self._some.wait()
            try:
                async with asyncio.timeout(LONGEST_S):
                    await self._full.wait()
            except TimeoutError:
                continue
