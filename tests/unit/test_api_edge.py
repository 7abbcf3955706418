"""What comes to the API's port besides requests: no HTTP, slow senders, too many connections, and our own faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import structlog

from appliance import pki
from appliance.coordinator import api as api_module
from appliance.coordinator.config import LimitSettings
from appliance.telemetry import with_names
from appliance.tls import client_context
from policies.repeats import STRANGERS_TOLD_AT_ONCE
from policies.requests import KEYS_PATH
from tests.fakes.coordinator_side import TOKEN, FakeNetwork, until

KEY = {
    "scheme": "ECDSA", "curve": "secp256k1", "signers": 3, "tolerate": 1, "label": "treasury", "externalId": "key-1",
}  # fmt: skip
BODY = msgspec.json.encode(KEY)
TIMEOUT_S = 10.0


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made:
        yield made


class Raw:
    """A TLS connection that says what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], dict[str, object]]:
        """Status, headers in lower case, and the JSON of one answer."""
        async with asyncio.timeout(TIMEOUT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(first.split()[1]), headers, json.loads(body)

    async def closed(self) -> bool:
        """Whether the other side closes, within the time-out, without another word."""
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                return await self.reader.read(1) == b""
        return True


@asynccontextmanager
async def raw(net: FakeNetwork) -> AsyncIterator[Raw]:
    tls = client_context(net.files.path("ca.pem"))
    port = int(net.api.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="localhost")
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


def head(method: str, path: str, **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def signed_head(net: FakeNetwork, **headers: str) -> bytes:
    jws = net.sign(KEYS_PATH, BODY)
    return head("POST", KEYS_PATH + "?wait=0", Keymoot_Signature=jws, Content_Type="application/json", **headers)


# --- no HTTP ---


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "malformed-http"),
        (b"\x00\xff" * 50 + b"\r\n\r\n", 400, "malformed-http"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "malformed-http"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, "malformed-http"),
        (b"GET / HTTP/1.1\r\nA: b\r\nHost: a\r\nContent-Length: abc\r\n\r\n", 400, "malformed-http"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, "malformed-http"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "malformed-http"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "malformed-http"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 431, "header-too-large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431, "header-too-large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 500 + b"\r\n", 400, "malformed-http"),
    ],
)  # fmt: skip
async def test_what_is_no_http_is_a_problem_once_in_the_log(
    net: FakeNetwork, data: bytes, status: int, code: str
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with raw(net) as connection:
            await connection.send(data)
            answered, headers, shown = await connection.answer()
            assert (answered, shown["status"], shown["code"]) == (status, status, code)
            assert headers["content-type"].startswith("application/problem+json")
            assert "Traceback" not in str(shown)
            assert await connection.closed()
    (line,) = logs
    assert line["event"] == "no-http"
    assert line["request_id"] == shown["requestId"] == headers["x-request-id"]


async def test_a_body_in_bad_chunks_is_a_problem(net: FakeNetwork) -> None:
    async with raw(net) as connection:
        await connection.send(signed_head(net, Transfer_Encoding="chunked") + b"zz\r\n")
        status, headers, shown = await connection.answer()
        assert (status, headers["content-type"]) == (400, "application/problem+json")
        assert shown["code"] in ("bad-request", "malformed-http")
        assert await connection.closed()


async def test_an_expectation_that_nobody_meets_is_a_problem(net: FakeNetwork) -> None:
    async with raw(net) as connection:
        await connection.send(head("GET", "/healthz", Expect="the-moon"))
        status, headers, shown = await connection.answer()
        assert (status, shown["code"]) == (417, "expectation-failed")
        assert headers["content-type"] == "application/problem+json"
        assert len(shown["requestId"]) == 32
        assert shown["requestId"] == headers["x-request-id"]


async def test_a_compressed_body_is_not_unpacked(net: FakeNetwork) -> None:
    async with raw(net) as connection:
        await connection.send(signed_head(net, Content_Encoding="gzip", Content_Length=str(len(BODY))) + BODY)
        status, _, shown = await connection.answer()
        assert (status, shown["code"]) == (415, "unsupported-media-type")


async def test_a_fault_of_our_own_is_a_problem_without_a_trace_once_in_the_log(
    net: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret of the house")

    monkeypatch.setattr(api_module, "show_pools", broken)
    with structlog.testing.capture_logs() as logs:
        status, shown = await net.get("/v1/pools")
    assert (status, shown["code"]) == (500, "internal-error")
    assert "secret" not in str(shown)
    assert [line["event"] for line in logs] == ["request-failed", "request"]


async def test_a_flood_of_strangers_leaves_few_lines_and_hides_no_clients(net: FakeNetwork) -> None:
    flood = STRANGERS_TOLD_AT_ONCE + 50
    with structlog.testing.capture_logs([with_names]) as logs:
        async with raw(net) as connection:
            for _ in range(flood):
                await connection.send(head("GET", "/v1/keys"))
                assert (await connection.answer())[0] in (401, 429)
        assert (await net.get("/v1/keys"))[0] == 200
    told = [line for line in logs if line["event"] == "request" and not line["client"]]
    passed_over = sum(line.get("not_told", 0) for line in told)
    assert STRANGERS_TOLD_AT_ONCE <= len(told) < flood
    assert len(told) + passed_over <= flood
    assert [line["client"] for line in logs if line["event"] == "request" and line["client"]] == ["reader/tests"]


async def test_a_flood_of_what_is_no_http_leaves_few_lines(net: FakeNetwork) -> None:
    flood = STRANGERS_TOLD_AT_ONCE + 50
    with structlog.testing.capture_logs() as logs:
        for _ in range(flood):
            async with raw(net) as connection:
                await connection.send(b"hello\r\n\r\n")
                assert (await connection.answer())[0] == 400
    assert STRANGERS_TOLD_AT_ONCE <= len([line for line in logs if line["event"] == "no-http"]) < flood


async def test_certificates_of_strangers_at_many_addresses_leave_few_lines(net: FakeNetwork) -> None:
    flood = STRANGERS_TOLD_AT_ONCE + 30
    pki.issue(pki.make_ca("other"), "signer-1", pki.Purpose.CLIENT).write(
        net.files.path("x.pem"), net.files.path("x.key")
    )
    tls = client_context(net.files.path("ca.pem"), net.files.path("x.pem"), net.files.path("x.key"))
    port = int(net.gateway.rpartition(":")[2])
    with structlog.testing.capture_logs() as logs:
        for number in range(flood):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=tls, server_hostname="localhost", local_addr=(f"127.0.1.{number + 1}", 0)
            )
            with contextlib.suppress(OSError, ssl.SSLError):
                await reader.read()
            writer.close()
    told = [line for line in logs if line["event"] == "certificate-refused"]
    assert STRANGERS_TOLD_AT_ONCE <= len(told) < flood


# --- slow senders ---


async def test_a_body_that_dribbles_in_is_given_up(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path, limits=LimitSettings(body_timeout_s=0.3)) as net, raw(net) as connection:
        await connection.send(signed_head(net, Content_Length=str(len(BODY))))
        started_s = time.monotonic()
        dribble = asyncio.create_task(_dribble(connection, BODY[:-1]))
        status, headers, shown = await connection.answer()
        dribble.cancel()
        assert (status, shown["code"], headers["connection"]) == (408, "body-too-slow", "close")
        assert time.monotonic() - started_s < 5
        assert await connection.closed()
        assert await net.get(KEYS_PATH) == (200, {"items": []})


async def test_a_head_that_dribbles_in_and_a_connection_without_a_word_are_closed(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path, limits=LimitSettings(idle_timeout_s=0.3)) as net:
        async with raw(net) as connection:
            dribble = asyncio.create_task(_dribble(connection, b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 1000))
            assert await connection.closed()
            dribble.cancel()
        async with raw(net) as connection:
            assert await connection.closed()
        async with raw(net) as connection:
            await connection.send(head("GET", "/healthz"))
            assert (await connection.answer())[0] == 200
            assert await connection.closed()


async def _dribble(connection: Raw, data: bytes) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        for byte in data:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.02)


async def test_a_sender_that_goes_away_is_no_fault_of_ours(net: FakeNetwork) -> None:
    with structlog.testing.capture_logs() as logs:
        async with raw(net) as connection:
            await connection.send(signed_head(net, Content_Length=str(len(BODY))) + BODY[:10])
            await asyncio.sleep(0)
        await until(lambda: logs)
    assert [(line["event"], line["log_level"]) for line in logs] == [("request", "info")]


async def test_a_body_of_an_unknown_client_is_not_waited_for(net: FakeNetwork) -> None:
    async with raw(net) as connection:
        await connection.send(head("POST", KEYS_PATH, Content_Type="application/json", Content_Length="100000"))
        status, _, shown = await connection.answer()
        assert (status, shown["code"]) == (401, "request/jws")


async def test_a_body_that_is_announced_too_large_is_not_waited_for(net: FakeNetwork) -> None:
    async with raw(net) as connection:
        await connection.send(signed_head(net, Content_Length="131073"))
        assert (await connection.answer())[0] == 413
    async with raw(net) as connection:
        await connection.send(signed_head(net, Transfer_Encoding="chunked"))
        chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        await connection.send(chunk * 4 + b"1\r\n \r\n")
        assert (await connection.answer())[0] == 413


async def test_signing_goes_on_beside_slow_senders(net: FakeNetwork) -> None:
    async with net.all_connected(), contextlib.AsyncExitStack() as stack:
        _, made = await net.post(KEYS_PATH, KEY)
        dribbles = []
        for number in range(60):
            slow = await stack.enter_async_context(raw(net))
            if number % 2:
                data = b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 1000
            else:
                await slow.send(signed_head(net, Content_Length=str(len(BODY))))
                data = BODY[:-1] * 1000
            dribbles.append(asyncio.create_task(_dribble(slow, data)))
        for number in range(10):
            body = {"kind": "Hash", "hash": "0x" + "11" * 32, "externalId": f"sig-{number}"}
            started_s = time.monotonic()
            status, shown = await net.post(f"{KEYS_PATH}/{made['id']}/signatures", body)
            assert (status, shown["status"]) == (201, "Signed")
            assert time.monotonic() - started_s < 5
        for task in dribbles:
            task.cancel()


# --- many connections ---


async def test_one_address_has_so_many_connections_and_gets_a_place_back(tmp_path: pathlib.Path) -> None:
    limits = LimitSettings(connections_per_address=2)
    async with FakeNetwork.start(tmp_path, limits=limits) as net:
        async with raw(net), raw(net) as second:
            with pytest.raises((OSError, ssl.SSLError, EOFError)):
                async with raw(net):
                    pass
            await second.send(head("GET", KEYS_PATH, Authorization=f"Bearer {TOKEN}"))
            assert (await second.answer())[0] == 200
        listener = net.coordinator.listeners["api"]
        await until(lambda: listener.open == 0)
        # New connections have a rate too.
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    async with raw(net) as third:
                        await third.send(head("GET", "/healthz"))
                        assert (await third.answer())[0] == 200
                        return
                except (OSError, ssl.SSLError, EOFError):
                    await asyncio.sleep(0.05)


async def test_who_does_not_speak_tls_gives_the_place_back(net: FakeNetwork) -> None:
    listener = net.coordinator.listeners["api"]
    port = int(net.api.rpartition(":")[2])
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        if not data:
            writer.close()
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
        await until(lambda: listener.open == 0)
