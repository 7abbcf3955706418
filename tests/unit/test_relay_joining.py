"""Messages that share a WebSocket message: all of them in order, or none; never one within another."""

from __future__ import annotations

import asyncio

import pytest

from appliance import relay
from appliance.coordinator.connection import Connection
from enclave import wire

ONLINE = [relay.Online((index,)) for index in range(1, 5)]


def encoded(messages: list[relay.Online]) -> list[bytes]:
    return [wire.encode(message) for message in messages]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_joined_messages_come_apart_in_order(count: int) -> None:
    assert relay.split(relay.join(encoded(ONLINE[:count])), relay.Down) == ONLINE[:count]


def test_one_message_travels_as_itself() -> None:
    assert relay.join(encoded(ONLINE[:1])) == wire.encode(ONLINE[0])


def test_one_bad_message_spoils_all() -> None:
    joined = relay.join([*encoded(ONLINE[:2]), b"\xc1"])
    with pytest.raises(wire.Malformed):
        relay.split(joined, relay.Down)


def test_messages_are_not_nested() -> None:
    nested = relay.join([relay.join(encoded(ONLINE[:2])), wire.encode(ONLINE[2])])
    with pytest.raises(wire.Malformed):
        relay.split(nested, relay.Down)


@pytest.mark.parametrize("count", [0, 1, relay.JOINED_MESSAGES + 1])
def test_their_number_is_bounded(count: int) -> None:
    data = wire.encode(relay.Several(tuple(encoded(ONLINE[:1]) * count)))
    with pytest.raises(wire.Malformed):
        relay.split(data, relay.Down)


def test_what_goes_up_is_not_taken_down() -> None:
    joined = relay.join([wire.encode(relay.Forward(1, b"x"))] * 2)
    assert len(relay.split(joined, relay.Up)) == 2
    with pytest.raises(wire.Malformed):
        relay.split(relay.join([wire.encode(relay.KeyAdded())] * 2), relay.Down)


class Socket:
    """Takes what a connection writes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.three = asyncio.Event()

    async def send_bytes(self, data: bytes) -> None:
        self.written.append(data)
        if len(self.written) == 3:
            self.three.set()

    async def close(self, *, code: int, message: bytes) -> None:
        pass


async def test_what_waits_leaves_together_within_the_bounds() -> None:
    socket = Socket()
    connection = Connection(socket)  # type: ignore[arg-type]
    small = [wire.encode(relay.Deliver(1, bytes(10)))] * (relay.JOINED_MESSAGES + 3)
    large = [wire.encode(relay.Deliver(2, bytes(relay.JOINED_BYTES)))] * 2
    for data in [*small, *large]:
        connection.send(data)
    draining = asyncio.create_task(connection.drain())
    async with asyncio.timeout(10):
        await socket.three.wait()
    connection.end(1000, "done")  # type: ignore[arg-type]
    await draining
    sizes = [len(relay.split(data, relay.Down)) for data in socket.written]
    assert sizes == [relay.JOINED_MESSAGES, 4, 1]
    assert max(map(len, socket.written)) <= relay.MAX_WEBSOCKET_BYTES
