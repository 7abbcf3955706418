"""The three pieces of flow control that every connection of the signer is made of."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import NoReturn

from appliance.signer.errors import LinkOverflow


class Outbox:
    """Encoded messages that wait for one connection, in order; each source has its own quota.

    One source that floods the connection overflows its own quota and cannot crowd out another.
    """

    def __init__(self, name: str, max_messages: int, max_bytes: int) -> None:
        self._name = name
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._messages: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._queue: deque[tuple[str, bytes]] = deque()
        self._arrival: asyncio.Future[None] | None = None

    def put(self, source: str, data: bytes) -> None:
        """Queue `data`. Raises `LinkOverflow` where it would exceed the quota of `source`."""
        if self._messages[source] >= self._max_messages or self._bytes[source] + len(data) > self._max_bytes:
            raise LinkOverflow(
                f"queue from {source} to {self._name} is full",
                f"{self._name} takes messages too slowly: see whether its host is overloaded",
            )
        self._messages[source] += 1
        self._bytes[source] += len(data)
        self._queue.append((source, data))
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def __len__(self) -> int:
        return len(self._queue)

    async def drain(
        self,
        write: Callable[[bytes], Awaitable[None]],
        join: Callable[[Sequence[bytes]], bytes],
        *,
        at_once: int,
        at_once_bytes: int,
    ) -> NoReturn:
        """Write what waits, `at_once` messages at most joined into one, fewer where they come to `at_once_bytes`. The
        quota is freed when they have been written."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                self._arrival = loop.create_future()
                await self._arrival
            taken = self.take(at_once, at_once_bytes)
            await write(join([data for _, data in taken]))
            self.free(taken)

    def take(self, at_once: int, at_once_bytes: int) -> list[tuple[str, bytes]]:
        """The next messages and their sources: `at_once` at most, fewer where they come to `at_once_bytes`."""
        taken: list[tuple[str, bytes]] = []
        size = 0
        while self._queue and size < at_once_bytes and len(taken) < at_once:
            taken.append(self._queue.popleft())
            size += len(taken[-1][1])
        return taken

    def free(self, taken: Sequence[tuple[str, bytes]]) -> None:
        """What was taken has been written: its sources may queue as much again."""
        for source, data in taken:
            self._messages[source] -= 1
            self._bytes[source] -= len(data)


@dataclass
class Backoff:
    """Delays between attempts: doubling from `first_s` to `longest_s`, each multiplied by 0.5 to 1."""

    first_s: float
    longest_s: float
    source: random.Random
    attempts: int = 0

    def next_s(self) -> float:
        """The delay before the next attempt."""
        delay_s = min(self.longest_s, self.first_s * 2.0 ** min(self.attempts, 32))
        self.attempts += 1
        return delay_s * self.source.uniform(0.5, 1.0)

    def reset(self) -> None:
        """The last attempt succeeded: start from `first_s` again."""
        self.attempts = 0


async def until_first_ends(*coroutines: Coroutine[object, object, None]) -> None:
    """Run all until one returns or raises; cancel the others, wait for them, raise what the first raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task in done:
            task.result()
