"""What may leave the signer only once something is on disk, in the order in which the enclave said it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import NoReturn

MAX_WAITING = 1024


@dataclass(frozen=True)
class _Departure:
    """What may happen only once `commit` is done; None where nothing had to be committed."""

    commit: asyncio.Task[None] | None
    then: Callable[[], object]


class Departures:
    """A queue of effects, at most `MAX_WAITING`, each behind its commit and behind all before it."""

    def __init__(self) -> None:
        self._waiting: deque[_Departure] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    async def add(self, commit: Coroutine[object, object, None] | None, then: Callable[[], object]) -> None:
        """Start `commit` now, after those of earlier calls; do `then` when it and all before it are on disk: at once
        where nothing is waited for. Raises what `then` raises, if at once."""
        async with self._turn:
            while len(self._waiting) >= MAX_WAITING:
                self._room.clear()
                await self._room.wait()
            if commit is None and not self._waiting:
                then()
                return
            task = None if commit is None else asyncio.create_task(commit)
            self._waiting.append(_Departure(task, then))
            self._arrived.set()

    async def run(self) -> NoReturn:
        """Let them go. Raises what a commit or an effect raised."""
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            first = self._waiting[0]
            if first.commit is not None:
                await asyncio.wait([first.commit])  # unlike `await`, cancelling this leaves the commit alone
                first.commit.result()
            first.then()
            self._waiting.popleft()
            self._room.set()

    async def settle(self) -> None:
        """Wait for the commits under way, so that the next `Attach` states what is on disk. Raises the first
        failure of the store. What was to leave after them does not leave: its receiver is gone."""
        commits = [departure.commit for departure in self._waiting if departure.commit is not None]
        if commits:
            await asyncio.wait(commits)
        failures = [failure for commit in commits if (failure := commit.exception()) is not None]
        if failures:
            raise failures[0]
