"""Bodies that are being read: strangers who stall cannot hold the place of those who do not."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from appliance.coordinator.bodies import Bodies, TooLarge
from enclave.wire import MAX_BODY_BYTES
from policies.errors import Unavailable

STALLED = MAX_BODY_BYTES - 1


class Sender:
    """One body on its way."""

    def __init__(self, bodies: Bodies, address: str, client: str = "alice") -> None:
        loop = asyncio.get_running_loop()
        self.content = StreamReader(Mock(spec=BaseProtocol), 2**20, loop=loop)
        headers = {"Content-Type": "application/json"}
        request = make_mocked_request("POST", "/", headers=headers, payload=self.content)
        self.task = asyncio.create_task(bodies.read(request, address, client))

    async def stall(self, size: int = STALLED) -> Sender:
        self.content.feed_data(b"x" * size)
        for _ in range(4):
            await asyncio.sleep(0)
        return self

    async def whole(self, size: int) -> bytes:
        await self.stall(size)
        self.content.feed_eof()
        return await self.task

    async def refused(self) -> bool:
        with pytest.raises(Unavailable, match="too many bodies"):
            await self.task
        return True

    async def gone(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_the_address_that_holds_most_gives_way_not_the_newcomer() -> None:
    bodies = Bodies(60.0, max_held=4 * STALLED, max_held_by_address=3 * STALLED)
    greedy = [await Sender(bodies, "192.0.2.1").stall() for _ in range(3)]
    other = await Sender(bodies, "192.0.2.2").stall()
    assert bodies.held_bytes == 4 * STALLED
    assert await Sender(bodies, "192.0.2.3").whole(1000) == b"x" * 1000
    assert await greedy[0].refused()
    assert [sender.task.done() for sender in (*greedy[1:], other)] == [False] * 3
    for sender in (*greedy[1:], other):
        await sender.gone()
    assert bodies.held_bytes == 0


async def test_an_address_has_its_share_and_in_it_the_client_that_holds_most_gives_way() -> None:
    bodies = Bodies(60.0, max_held=100 * STALLED, max_held_by_address=3 * STALLED)
    named = [await Sender(bodies, "192.0.2.1", "alice").stall() for _ in range(3)]
    assert await Sender(bodies, "192.0.2.1", "bob").whole(1000) == b"x" * 1000
    assert await named[0].refused()
    # Where a stranger names the very client: what stalls longest gives way.
    named.append(await Sender(bodies, "192.0.2.1", "alice").stall())
    assert await Sender(bodies, "192.0.2.1", "alice").whole(1000) == b"x" * 1000
    assert await named[1].refused()
    for sender in named[2:]:
        await sender.gone()
    assert bodies.held_bytes == 0


async def test_a_body_larger_than_all_places_ends_itself_alone() -> None:
    bodies = Bodies(60.0, max_held=1000)
    assert await (await Sender(bodies, "192.0.2.1").stall(1001)).refused()
    assert bodies.held_bytes == 0


async def test_a_body_that_is_there_already_takes_no_place_of_others() -> None:
    bodies = Bodies(60.0, max_held=1000)
    at_once = Sender(bodies, "192.0.2.1")
    at_once.content.feed_data(b"x" * 1001)
    at_once.content.feed_eof()
    assert await at_once.task == b"x" * 1001
    assert bodies.held_bytes == 0


async def test_a_body_that_is_there_already_is_bounded() -> None:
    large = Sender(Bodies(60.0), "192.0.2.1")
    large.content.feed_data(b"x" * (MAX_BODY_BYTES + 1))
    large.content.feed_eof()
    with pytest.raises(TooLarge):
        await large.task
