"""Quotas, back-off, and tasks that end together."""

from __future__ import annotations

import asyncio
import random

import pytest

from appliance.signer.errors import LinkDown, LinkOverflow
from appliance.signer.flow import Backoff, Outbox, until_first_ends


async def drained(outbox: Outbox, count: int) -> list[bytes]:
    """The first `count` messages that `drain` writes."""
    written: list[bytes] = []
    full = asyncio.Event()

    async def write(data: bytes) -> None:
        written.append(data)
        if len(written) == count:
            full.set()

    task = asyncio.ensure_future(outbox.drain(write, b"".join, at_once=1, at_once_bytes=1))
    await asyncio.wait_for(full.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return written


async def test_a_flood_of_one_source_overflows_its_own_quota() -> None:
    outbox = Outbox("there", max_messages=2, max_bytes=100)
    outbox.put("bad", b"1")
    outbox.put("bad", b"2")
    with pytest.raises(LinkOverflow, match="queue from bad to there is full"):
        outbox.put("bad", b"3")
    outbox.put("good", b"4")
    assert await drained(outbox, 3) == [b"1", b"2", b"4"]


async def test_the_quota_counts_bytes_and_is_freed_by_writing() -> None:
    outbox = Outbox("there", max_messages=10, max_bytes=10)
    outbox.put("a", bytes(10))
    with pytest.raises(LinkOverflow):
        outbox.put("a", b"x")
    await drained(outbox, 1)
    outbox.put("a", bytes(10))


def test_back_off_doubles_up_to_its_limit_and_starts_again() -> None:
    backoff = Backoff(1.0, 5.0, random.Random(1))
    delays = [backoff.next_s() for _ in range(100)]
    for delay, most in zip(delays, [1.0, 2.0, 4.0] + [5.0] * 97, strict=True):
        assert most / 2 <= delay <= most
    assert len(set(delays)) == 100
    backoff.reset()
    assert backoff.next_s() <= 1.0


async def test_the_first_failure_ends_all_and_is_raised() -> None:
    ended = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waits")

    async def fails() -> None:
        raise LinkDown("x", "y")

    with pytest.raises(LinkDown):
        await asyncio.wait_for(until_first_ends(waits(), fails(), waits()), 5)
    assert ended == ["waits", "waits"]
