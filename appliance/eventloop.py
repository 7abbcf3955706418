"""The event loop of the appliance's processes: uvloop, whose TLS and sockets take less of the interpreter's time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import uvloop

from policies import garbage

T = TypeVar("T")


def run(main: Coroutine[object, object, T]) -> T:
    """Run `main` to its end on a loop of its own."""
    garbage.settle()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop that nobody runs yet."""
    return uvloop.new_event_loop()
