"""Whoever a signer connects to may say anything or nothing: the attempt ends with a reason, and the next one works.

And a signer with a valid certificate may say anything to the coordinator: it loses its own connection alone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import pathlib
import random
import resource
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import structlog.testing
from aiohttp import web

from appliance import relay
from appliance.api import models
from appliance.api.credentials import Credential
from appliance.api.results import ApiError
from appliance.api.transport import Transport
from appliance.signer import coordinator_link
from appliance.signer.config import CoordinatorSettings
from appliance.signer.coordinator_link import CoordinatorLink
from appliance.tls import client_context, server_context
from enclave import wire
from tests.fakes.coordinator_side import FakeNetwork
from tests.fakes.servers import serving
from tests.fakes.signer_side import FakeCoordinator, attached, within
from tests.fakes.tls import TlsFiles

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MASK = b"\x01\x02\x03\x04"
GROWTH_KIB = 96 * 1024


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return TlsFiles.make(tmp_path_factory.mktemp("tls"))


# --- who answers a signer ---


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(-1)


async def says_garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(random.Random(1).randbytes(4096))
    await writer.drain()


async def stops_in_the_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The head of a TLS record of 4 kB, a few bytes of it, and nothing more."""
    writer.write(b"\x16\x03\x03\x10\x00\x02\x00\x0f\xfc\x03\x03")
    await reader.read(-1)


@pytest.mark.parametrize("act", [says_nothing, says_garbage, stops_in_the_handshake])
async def test_who_does_not_speak_tls(tls: TlsFiles, monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
    server = await asyncio.start_server(act, "127.0.0.1", 0)
    async with server:
        await refused_then_served(tls, monkeypatch, server.sockets[0].getsockname()[1])


async def no_http(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")


async def endless_header(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nx: ")
    with contextlib.suppress(OSError):
        for _ in range(1000):
            writer.write(bytes(1024).replace(b"\0", b"a"))
            await writer.drain()


async def no_upgrade(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


async def wrong_accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-accept: AAAA\r\n\r\n"
    )


async def trickles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 101 Switching Protocols\r\n" * 100:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("act", [says_nothing, no_http, endless_header, no_upgrade, wrong_accept, trickles])
async def test_who_speaks_tls_and_no_websocket(tls: TlsFiles, monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
    async def after_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await act(reader, writer)
        writer.close()

    context = server_context(tls.server_certificate, tls.server_key, tls.ca)
    server = await asyncio.start_server(after_request, "127.0.0.1", 0, ssl=context)
    async with server:
        await refused_then_served(tls, monkeypatch, server.sockets[0].getsockname()[1])


def head(first: int, length: int) -> bytes:
    """The head of an unmasked frame whose first byte is `first`."""
    if length < 126:
        return bytes([first, length])
    return (
        bytes([first, 126]) + struct.pack("!H", length)
        if length < 65536
        else bytes([first, 127]) + struct.pack("!Q", length)
    )


FRAMES = {
    "announces 2^62 bytes": head(0x82, 2**62),
    "announces one byte too many": head(0x82, relay.MAX_WEBSOCKET_BYTES + 1) + bytes(1000),
    "compressed, though nobody agreed": head(0xC2, 4) + b"\x02\x00\x00\x00",
    "a compressed bomb": head(0xC2, 60_000) + gzip.compress(bytes(60_000_000))[:60_000].ljust(60_000, b"\0"),
    "an endless fragmented message": (head(0x02, 60_000) + bytes(60_000)) + (head(0x00, 60_000) + bytes(60_000)) * 60,
    "a long ping": head(0x89, 1000) + bytes(1000),
    "an unknown opcode": head(0x83, 1) + b"x",
    "a continuation of nothing": head(0x80, 1) + b"x",
    "a text": head(0x81, 2) + b"hi",
    "a text that is not UTF-8": head(0x81, 2) + b"\xff\xfe",
    "a close with a bad code": head(0x88, 2) + struct.pack("!H", 7),
}


@pytest.mark.parametrize("frame", FRAMES)
async def test_frames_that_are_none(tls: TlsFiles, monkeypatch: pytest.MonkeyPatch, frame: str) -> None:
    grown = max_rss_kib()
    async with raw_websockets(tls, FRAMES[frame]) as port:
        await refused_then_served(tls, monkeypatch, port)
    assert max_rss_kib() - grown < GROWTH_KIB


async def test_a_flood_of_pings_is_answered_and_keeps_nothing(tls: TlsFiles) -> None:
    """It costs time, not memory; what follows it is heard."""
    grown, heard = max_rss_kib(), asyncio.Event()
    message = wire.encode(relay.Online((1,)))
    flood = head(0x89, 100) + bytes(100)
    async with raw_websockets(tls, flood * 50_000 + head(0x82, len(message)) + message) as port:
        link = link_to(tls, port, lambda _: heard.set())
        running = asyncio.create_task(link.run())
        await within(heard.wait(), 30)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert max_rss_kib() - grown < GROWTH_KIB


@asynccontextmanager
async def raw_websockets(tls: TlsFiles, after_upgrade: bytes) -> AsyncIterator[int]:
    """A server that upgrades, sends `after_upgrade`, and reads for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in request.decode().split("\r\n") if ": " in line)
            key = next(value for name, value in fields.items() if name.lower() == "sec-websocket-key")
            digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
                b"sec-websocket-accept: " + base64.b64encode(digest) + b"\r\n\r\n" + after_upgrade
            )
            while await reader.read(65536):
                pass
        writer.close()

    context = server_context(tls.server_certificate, tls.server_key, tls.ca)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def link_to(tls: TlsFiles, port: int, deliver: Callable[[relay.Down], None]) -> CoordinatorLink:
    settings = CoordinatorSettings("c1", f"https://127.0.0.1:{port}", tls.ca, tls.client_certificate, tls.client_key)
    return CoordinatorLink(
        settings, lambda: relay.Announce("test", attached()), deliver, lambda: None, random.Random(1)
    )


async def refused_then_served(tls: TlsFiles, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """The link to `port` fails, says why, and keeps trying; a coordinator that takes its place is linked."""
    monkeypatch.setattr(coordinator_link, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(coordinator_link, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(coordinator_link, "LONGEST_RETRY_S", 0.05)
    link = link_to(tls, port, lambda _: None)
    before = len(asyncio.all_tasks())
    with structlog.testing.capture_logs() as logs:
        running = asyncio.create_task(link.run())
        try:
            async with asyncio.timeout(10):
                while not [one for one in logs if one["event"] == "coordinator-link-down"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            async with FakeCoordinator.listening(tls) as (good, good_port):
                link._settings = msgspec.structs.replace(link._settings, url=f"https://127.0.0.1:{good_port}")
                await good.announced()
                assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    reasons = [one["reason"] for one in logs if one["event"] == "coordinator-link-down"]
    assert all(0 < len(reason) <= 512 for reason in reasons)
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > before + 4:  # noqa: ASYNC110 - servers of this test end their own
            await asyncio.sleep(0.01)


def max_rss_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- who connects to the coordinator, with a certificate that counts ---


def masked(first: int, length: int, data: bytes) -> bytes:
    plain = head(first, length)
    return plain[:1] + bytes([plain[1] | 0x80]) + plain[2:] + MASK + bytes(b ^ MASK[i % 4] for i, b in enumerate(data))


UP = {
    "announces 2^62 bytes": masked(0x82, 2**62, b""),
    "announces one byte too many": masked(0x82, relay.MAX_WEBSOCKET_BYTES + 1, bytes(1000)),
    "compressed, though nobody agreed": masked(0xC2, 4, b"\x02\x00\x00\x00"),
    "an unknown opcode": masked(0x83, 1, b"x"),
    "a text": masked(0x81, 2, b"hi"),
    "not masked": head(0x82, 1) + b"x",
    "no announcement": masked(0x82, 3, b"\x93\x01\x02"),
    "a flood of pings": masked(0x89, 100, bytes(100)) * 20_000,
}


@pytest.mark.parametrize("frame", UP)
async def test_a_hostile_signer_loses_its_own_connection_alone(tmp_path: pathlib.Path, frame: str) -> None:
    async with FakeNetwork.start(tmp_path) as net, net.all_connected():
        tls = client_context(net.files.path("ca.pem"), *net.files.client("signer-2"))
        reader, writer = await asyncio.open_connection("127.0.0.1", net.coordinator.ports["signers"], ssl=tls)
        writer.write(
            f"GET {relay.CONTROL_PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n".encode()
        )
        answer = await within(reader.readuntil(b"\r\n\r\n"))
        assert b" 101 " in answer
        assert b"permessage-deflate" not in answer.lower()
        with contextlib.suppress(OSError):
            writer.write(UP[frame])
            if "flood" in frame:
                writer.write(masked(0x88, 2, struct.pack("!H", 1000)))
            await within(reader.read(-1), 20)
        writer.close()
        await net.ready()
        assert net.coordinator.network.signers.online() == (1, 2, 3)


# --- the client ---


async def test_a_compressed_answer_is_not_unpacked(tls: TlsFiles) -> None:
    bomb = gzip.compress(bytes(200_000_000))

    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"}, content_type="application/json")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    grown = max_rss_kib()
    async with serving(app, tls) as port:
        transport = Transport(f"https://127.0.0.1:{port}", tls.ca, Credential())
        transport.open()
        with pytest.raises(ApiError, match="malformed-answer"):
            await transport.exchange("GET", "/v1/keys", models.KeyList)
        await transport.close()
    assert max_rss_kib() - grown < GROWTH_KIB
