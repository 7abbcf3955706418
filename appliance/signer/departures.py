"""What may leave the signer only once something is on disk, in the order in which the enclave said it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, NoReturn

from policies.errors import KeymootError

MAX_WAITING = 1024


class _Departure(NamedTuple):
    """What may happen only once `commit` is done; None where nothing had to be committed."""

    commit: asyncio.Future[None] | None
    then: Callable[[], object]


class Departures:
    """A queue of effects, each behind its commit and behind all before it. Whoever adds to it stops where it is `full`:
    at `MAX_WAITING`."""

    def __init__(self, room: Callable[[], None]) -> None:
        """`room` is called when it is full no more."""
        self._room = room
        self._waiting: deque[_Departure] = deque()
        self._failed: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether nothing more is to be added for now."""
        return len(self._waiting) >= MAX_WAITING

    def add(self, commit: Awaitable[None] | None, then: Callable[[], object]) -> None:
        """Do `then` when `commit`, which is under way, and all before it are on disk: at once where nothing is waited
        for. Raises what `then` raises, if at once."""
        if commit is None and not self._waiting:
            then()
            return
        started = commit if commit is None or isinstance(commit, asyncio.Future) else asyncio.ensure_future(commit)
        self._waiting.append(_Departure(started, then))
        if started is not None:
            started.add_done_callback(self._let_go)

    async def run(self) -> NoReturn:
        """Let them go until a commit or an effect fails. Raises what it raised; nothing leaves after that."""
        await self._failed

    def _let_go(self, _: asyncio.Future[None]) -> None:
        was_full = self.full
        try:
            while self._waiting and not self._failed.done():
                commit, then = self._waiting[0]
                if commit is not None:
                    if not commit.done():
                        break
                    commit.result()
                then()
                self._waiting.popleft()
        except KeymootError as error:
            self._failed.set_exception(error)
        except BaseException as error:
            self._failed.set_exception(error)
            raise
        if was_full and not self.full:
            self._room()

    async def settle(self) -> None:
        """Wait for the commits under way, so that the next `Attach` states what is on disk. Raises the first
        failure of the store. What was to leave after them does not leave: its receiver is gone."""
        self._failed.cancel()
        commits = [departure.commit for departure in self._waiting if departure.commit is not None]
        if commits:
            await asyncio.wait(commits)
        failures = [failure for commit in commits if (failure := commit.exception()) is not None]
        if failures:
            raise failures[0]
