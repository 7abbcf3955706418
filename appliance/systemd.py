"""What signer and coordinator tell systemd: that their event loop goes around, and how they are."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

from policies.notify import Notifier, Send, notifier

ALIVE_EVERY_S = 1.0
TELL_EVERY_S = 5.0


def systemd() -> Notifier:
    """As the environment says; a notifier that does nothing where no systemd has started this process."""
    return notifier(_connect, time.monotonic)


async def report(told: Notifier, sentence: Callable[[], Awaitable[str]]) -> NoReturn:
    """Signs of life and the present sentence, until cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_alive(told))
        while True:
            if told.active:
                told.tell(await sentence())
            await asyncio.sleep(TELL_EVERY_S)


async def _alive(told: Notifier) -> NoReturn:
    """Not slowed down by what `sentence` waits for: it is the loop that is watched."""
    while True:
        told.alive()
        await asyncio.sleep(ALIVE_EVERY_S)


def _connect(address: str) -> Send:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.connect(address)
    return sock.send
