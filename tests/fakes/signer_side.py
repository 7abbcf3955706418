"""The two ends of a signer process: an enclave on a Unix socket, a coordinator behind mutual TLS. Both say what a
test tells them to say, and keep what they hear."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from aiohttp import WSMsgType, web

from appliance import relay
from enclave import wire
from tests.fakes.servers import serving
from tests.fakes.tls import TlsFiles

DEADLINE_S = 10.0
T = TypeVar("T")


async def within(awaitable: Awaitable[T], deadline_s: float = DEADLINE_S) -> T:
    """The result, or a failed test after the deadline."""
    return await asyncio.wait_for(awaitable, deadline_s)


def attached(boot: int = 1, network: str = "test") -> wire.Attached:
    return wire.Attached(
        protocol=wire.PROTOCOL_VERSION, enclave_version="0.1.0", network=network, index=1, name="signer-1",
        fingerprint="0123", roster_digest=bytes(32), policy_digest=bytes(32), gate_mode="signed",
        boot_nonce=bytes([boot]) * 32, prss_epoch=1,
    )  # fmt: skip


class EnclaveConnection:
    """One attached signer as the enclave sees it."""

    def __init__(self, writer: asyncio.StreamWriter, attach: wire.Attach) -> None:
        self.attach = attach
        self.received: asyncio.Queue[wire.ToEnclave | None] = asyncio.Queue()
        self._writer = writer

    def send(self, message: wire.FromEnclave) -> None:
        self._writer.write(wire.frame(message))

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()

    async def next(self) -> wire.ToEnclave | None:
        """The next message; None once the signer has closed."""
        return await within(self.received.get())

    async def until(self, expected: wire.ToEnclave) -> None:
        """Read until `expected` arrives."""
        while (message := await self.next()) != expected:
            assert message is not None, f"closed before {expected}"


class FakeEnclave:
    """Answers `Attach`; every connection appears in `connections`."""

    def __init__(self, answer: wire.Attached) -> None:
        self.answer = answer
        self.status: wire.Status | None = wire.Status("ready", "", {}, {"presignatures": 7}, {})
        self.connections: asyncio.Queue[EnclaveConnection] = asyncio.Queue()

    @classmethod
    @asynccontextmanager
    async def listening(cls, path: pathlib.Path, answer: wire.Attached | None = None) -> AsyncIterator[FakeEnclave]:
        enclave = cls(answer or attached())
        server = await asyncio.start_unix_server(enclave._serve, path)
        try:
            yield enclave
        finally:
            server.close()

    async def connection(self) -> EnclaveConnection:
        return await within(self.connections.get())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attach: wire.Attach = wire.decode(await _frame(reader), wire.Attach)
        connection = EnclaveConnection(writer, attach)
        connection.send(self.answer)
        self.connections.put_nowait(connection)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = wire.decode(await _frame(reader), wire.ToEnclave)
                if isinstance(message, wire.StatusQuery):
                    # Asked every now and then: tests hear what else is said.
                    if self.status is not None:
                        connection.send(self.status)
                else:
                    connection.received.put_nowait(message)
        connection.received.put_nowait(None)
        writer.close()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(wire.LENGTH_BYTES), "big"))


class FakeCoordinator:
    """Both WebSockets of one signer. `heard` holds (bulk, message), announcements included; `conditions` what is
    told every now and then."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[bool, relay.Up]] = asyncio.Queue()
        self.conditions: list[relay.Condition] = []
        self.sockets: dict[bool, web.WebSocketResponse] = {}

    @classmethod
    @asynccontextmanager
    async def listening(cls, tls: TlsFiles, port: int = 0) -> AsyncIterator[tuple[FakeCoordinator, int]]:
        coordinator = cls()
        app = web.Application()
        app.router.add_get(relay.CONTROL_PATH, coordinator._control)
        app.router.add_get(relay.BULK_PATH, coordinator._bulk)
        async with serving(app, tls, mutual=True, port=port) as bound:
            yield coordinator, bound

    async def next(self) -> tuple[bool, relay.Up]:
        return await within(self.heard.get())

    async def announced(self) -> relay.Announce:
        """Both announcements of a new link, which are the same."""
        first, second = await self.next(), await self.next()
        assert isinstance(first[1], relay.Announce)
        assert {first, second} == {(False, first[1]), (True, first[1])}
        return first[1]

    async def send(self, message: relay.Down, *, bulk: bool = False) -> None:
        await self.sockets[bulk].send_bytes(wire.encode(message))

    async def _control(self, request: web.Request) -> web.WebSocketResponse:
        return await self._serve(request, bulk=False)

    async def _bulk(self, request: web.Request) -> web.WebSocketResponse:
        return await self._serve(request, bulk=True)

    async def _serve(self, request: web.Request, *, bulk: bool) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=relay.MAX_WEBSOCKET_BYTES)
        await socket.prepare(request)
        self.sockets[bulk] = socket
        async for message in socket:
            assert message.type is WSMsgType.BINARY
            for up in relay.split(message.data, relay.Up):
                if isinstance(up, relay.Condition):
                    self.conditions.append(up)
                else:
                    self.heard.put_nowait((bulk, up))
        return socket
