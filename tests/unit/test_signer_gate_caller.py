"""One exchange with a handler: verbatim, or unreachable. Every failure stays a failure."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from unittest.mock import Mock

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from appliance.signer.config import GateSettings
from appliance.signer.gate_caller import KEPT_IDLE_S, GateCaller
from appliance.signer.gate_connection import MAX_HEAD_BYTES, Answer, GateConnection, NoAnswer
from appliance.tls import server_context
from enclave import wire
from tests.fakes.servers import serving
from tests.fakes.tls import TlsFiles

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CALL = wire.CallGate("uid-1", "id-1", "1700000000", "v1,abc v1,def", b'{"exact": "bytes" }', 3000, "request-0001")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return TlsFiles.make(tmp_path_factory.mktemp("tls"))


class Gate:
    """Counts what reaches the handler."""

    def __init__(self, handler: Handler) -> None:
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self._handler = handler

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return await self._handler(request)


async def call(
    tls: TlsFiles, gate: Gate, *, mutual: bool = False, timeout_s: float = 3.0, **settings: pathlib.Path
) -> wire.GateReply | wire.GateUnreachable:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", gate.handle)
    async with serving(app, tls, mutual=mutual) as port:
        files = {"ca": tls.ca} | settings
        caller = GateCaller.open(GateSettings(f"https://127.0.0.1:{port}/gate", **files))
        try:
            return await caller.call(CALL, timeout_s)
        finally:
            await caller.close()


def unreachable(reply: object) -> str:
    assert isinstance(reply, wire.GateUnreachable)
    assert reply.uid == CALL.uid
    wire.decode(wire.encode(reply), wire.GateUnreachable)  # the enclave can read it
    return reply.reason


async def test_request_and_answer_are_verbatim(tls: TlsFiles) -> None:
    async def answer(request: web.Request) -> web.Response:
        headers = {
            "Webhook-Id": "id-2",
            "Webhook-Timestamp": "5",
            "Webhook-Signature": "v1,x",
            "Retry-After": "7",
            "Content-Encoding": "gzip",  # a lie: nothing may be unpacked on the way
        }
        return web.Response(status=202, body=b"\x00any bytes", headers=headers)

    gate = Gate(answer)
    assert await call(tls, gate) == wire.GateReply("uid-1", 202, "id-2", "5", "v1,x", 7, b"\x00any bytes")
    (request,) = gate.requests
    assert (request.method, request.path, gate.bodies) == ("POST", "/gate", [CALL.body])
    assert request.headers["webhook-id"] == "id-1"
    assert request.headers["x-request-id"] == "request-0001"
    assert request.headers["webhook-timestamp"] == "1700000000"
    assert request.headers["webhook-signature"] == "v1,abc v1,def"


@pytest.mark.parametrize("status", [200, 204, 400, 401, 429, 500, 502, 503, 504])
async def test_a_status_is_passed_on_and_never_tried_again(tls: TlsFiles, status: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status)

    gate = Gate(answer)
    assert await call(tls, gate) == wire.GateReply("uid-1", status, "", "", "", 0, b"")
    assert len(gate.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
async def test_a_redirect_is_not_followed(tls: TlsFiles, status: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    gate = Gate(answer)
    assert unreachable(await call(tls, gate)) == f"it answered with a redirect ({status})"
    assert len(gate.requests) == 1


async def test_a_slow_gate(tls: TlsFiles) -> None:
    async def never(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    assert unreachable(await call(tls, Gate(never), timeout_s=0.3)) == "no answer within 3000 ms"


async def test_a_gate_that_stops_in_its_body(tls: TlsFiles) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    assert unreachable(await call(tls, Gate(half))) == "it closed the connection within its answer"


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_huge_answer(tls: TlsFiles, chunked: bool) -> None:
    async def huge(request: web.Request) -> web.StreamResponse:
        if not chunked:
            return web.Response(body=bytes(wire.MAX_GATE_BODY_BYTES + 1))
        response = web.StreamResponse()
        await response.prepare(request)
        while True:  # ends when the caller hangs up
            await response.write(bytes(8192))

    assert unreachable(await call(tls, Gate(huge))) == "its answer is larger than 65536 bytes"


async def test_the_largest_answer_passes(tls: TlsFiles) -> None:
    async def large(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * wire.MAX_GATE_BODY_BYTES)

    reply = await call(tls, Gate(large))
    assert isinstance(reply, wire.GateReply)
    assert reply.body == b"x" * wire.MAX_GATE_BODY_BYTES


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("webhook-id", ["a", "b"], "repeats the header webhook-id"),
        ("webhook-timestamp", ["1" * 513], "more than 512 characters"),
        ("webhook-signature", ["v1," + "a" * 2048], "more than 2048 characters"),
        ("webhook-signature", ["v1,é"], "not ASCII"),
    ],
)
async def test_headers_that_the_enclave_could_not_read(
    tls: TlsFiles, name: str, values: list[str], reason: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        response = web.Response()
        for value in values:
            response.headers.add(name, value)
        return response

    assert reason in unreachable(await call(tls, Gate(answer)))


@pytest.mark.parametrize(
    ("value", "seconds"), [("0", 0), ("86401", 86_400), ("-1", 0), ("soon", 0), ("9" * 400, 0), ("１", 0)]
)
async def test_retry_after(tls: TlsFiles, value: str, seconds: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=202, headers={"Retry-After": value})

    reply = await call(tls, Gate(answer))
    assert isinstance(reply, wire.GateReply)
    assert reply.retry_after_s == seconds


async def ok(request: web.Request) -> web.Response:
    return web.Response()


async def test_a_gate_of_a_foreign_ca(tls: TlsFiles, tmp_path: pathlib.Path) -> None:
    gate, foreign = Gate(ok), TlsFiles.make(tmp_path)
    assert "its certificate is not trusted" in unreachable(await call(tls, gate, ca=foreign.ca))
    assert gate.requests == []


async def test_a_gate_that_wants_a_certificate(tls: TlsFiles) -> None:
    gate = Gate(ok)
    unreachable(await call(tls, gate, mutual=True))
    assert gate.requests == []
    files = {"certificate": tls.client_certificate, "key": tls.client_key}
    assert isinstance(await call(tls, gate, mutual=True, **files), wire.GateReply)


async def test_nobody_there(tls: TlsFiles) -> None:
    async with serving(web.Application(), tls) as port:
        pass
    caller = GateCaller.open(GateSettings(f"https://127.0.0.1:{port}/", tls.ca))
    assert "Connect" in unreachable(await caller.call(CALL, 3.0))
    await caller.close()


async def test_what_is_no_http(tls: TlsFiles) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 yes\r\n\xff\xfe\r\n\r\n")
        writer.close()

    context = server_context(tls.server_certificate, tls.server_key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    caller = GateCaller.open(GateSettings(f"https://127.0.0.1:{port}/", tls.ca))
    unreachable(await caller.call(CALL, 3.0))
    await caller.close()
    server.close()


class RawGate:
    """A handler that says whatever a test likes: one piece for each request, and `connections` that it took."""

    def __init__(self, *said: bytes) -> None:
        self.said, self.connections, self.heads = list(said), 0, list[bytes]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                await reader.readexactly(len(CALL.body))
                writer.write(self.said.pop(0))
        writer.close()


@contextlib.asynccontextmanager
async def raw(tls: TlsFiles, gate: RawGate) -> AsyncIterator[GateCaller]:
    context = server_context(tls.server_certificate, tls.server_key)
    server = await asyncio.start_server(gate.serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    caller = GateCaller.open(GateSettings(f"https://127.0.0.1:{port}/a?b=c", tls.ca))
    try:
        yield caller
    finally:
        await caller.close()
        server.close()


NO = b"HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\nno"
YES = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes"


async def test_a_connection_serves_again_and_again(tls: TlsFiles) -> None:
    gate = RawGate(NO, YES, NO)
    async with raw(tls, gate) as caller:
        replies = [await caller.call(CALL, 3.0) for _ in range(3)]
    assert [(reply.status, reply.body) for reply in replies] == [(403, b"no"), (200, b"yes"), (403, b"no")]
    assert gate.connections == 1
    assert gate.heads[0].startswith(b"POST /a?b=c HTTP/1.1\r\nhost: 127.0.0.1:")


@pytest.mark.parametrize("early", [YES, YES[:20], b"\r\n"], ids=["whole", "half", "line"])
async def test_an_answer_that_nobody_asked_for_answers_nothing(tls: TlsFiles, early: bytes) -> None:
    """In mode `status` a 200 approves: what is left over on a connection is never taken for the next answer."""
    gate = RawGate(NO + early, NO)
    async with raw(tls, gate) as caller:
        for _ in range(2):
            reply = await caller.call(CALL, 3.0)
            assert isinstance(reply, wire.GateUnreachable) or reply.status == 403


async def test_an_answer_that_comes_while_nobody_asks_answers_nothing(tls: TlsFiles) -> None:
    came = asyncio.Event()

    class Early(RawGate):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(CALL.body))
            writer.write(NO)
            if self.connections == 1:
                await came.wait()
                writer.write(YES)
                await reader.read()
            writer.close()

    gate = Early()
    async with raw(tls, gate) as caller:
        assert (await caller.call(CALL, 3.0)).status == 403
        ((kept, _),) = caller._idle
        came.set()
        async with asyncio.timeout(10):
            while kept.usable:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await caller.call(CALL, 3.0)).status == 403
    assert gate.connections == 2


async def test_who_talks_before_he_is_asked_is_not_asked() -> None:
    connection, transport = GateConnection(), Mock()
    connection.connection_made(transport)
    connection.data_received(YES)
    transport.abort.assert_called_once_with()
    with pytest.raises(NoAnswer, match="it talks before it is asked"):
        await connection.ask(b"question", 3.0)
    transport.write.assert_not_called()


async def test_what_nobody_needs_is_closed_and_what_was_made_under_older_files_is_not_used(tls: TlsFiles) -> None:
    gate = RawGate(YES, YES, YES)
    async with raw(tls, gate) as caller:
        await caller.call(CALL, 3.0)
        caller.files.reload()
        await caller.call(CALL, 3.0)
        assert gate.connections == 2
        ((kept, _),) = caller._idle
        caller._sweep(asyncio.get_running_loop())
        assert caller._idle
        kept.idle_since_s -= KEPT_IDLE_S
        caller._sweep(asyncio.get_running_loop())
        assert (caller._idle, kept.usable) == ([], False)
        await caller.call(CALL, 3.0)
    assert gate.connections == 3


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nyes",
        b"HTTP/1.1 200 OK\ncontent-length: 3\n\nyes",
        b"HTTP/1.1 200 OK\r\ncontent-length : 3\r\n\r\nyes",
        b"HTTP/1.1 200 OK\r\nwebhook-id: a\r\n b\r\ncontent-length: 3\r\n\r\nyes",
        b"HTTP/1.1 200 OK\r\nwebhook-id: a\x00\r\ncontent-length: 3\r\n\r\nyes",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-3\r\nyes\r\n0\r\n\r\n",
        b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 600 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 OK\r\nconnection: upgrade\r\nupgrade: yes\r\n\r\n" + YES,
        b"HTTP/1.1 101 OK\r\n\r\n" + YES,
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 4096,
    ],
)
async def test_what_two_parsers_could_read_differently_is_no_answer(tls: TlsFiles, said: bytes) -> None:
    async with raw(tls, RawGate(said)) as caller:
        reply = await caller.call(CALL, 3.0)
    assert isinstance(reply, wire.GateUnreachable)
    assert reply.code == "http"


async def test_no_field_behind_the_body_counts(tls: TlsFiles) -> None:
    said = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nyes\r\n0\r\nwebhook-id: x\r\n\r\n"
    async with raw(tls, RawGate(said, said)) as caller:
        for _ in range(2):
            assert await caller.call(CALL, 3.0) == wire.GateReply("uid-1", 200, "", "", "", 0, b"yes")


async def test_fields_of_answers_on_the_way_do_not_count(tls: TlsFiles) -> None:
    async with raw(tls, RawGate(b"HTTP/1.1 103 Early Hints\r\nwebhook-id: x\r\n\r\n" + YES)) as caller:
        assert await caller.call(CALL, 3.0) == wire.GateReply("uid-1", 200, "", "", "", 0, b"yes")


@given(st.lists(st.binary(max_size=40) | st.sampled_from([YES, NO, YES[:20], b"\r\n", b"0\r\n\r\n"]), max_size=6))
def test_any_bytes_are_an_answer_or_none(pieces: list[bytes]) -> None:
    answer = Answer()
    with contextlib.suppress(NoAnswer):
        for piece in pieces:
            answer.feed(piece)
            if answer.whole:
                return
        answer.end()
        assert answer.whole


@pytest.mark.parametrize(
    "said", [YES, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nye\r\n1\r\ns\r\n0\r\n\r\n"]
)
def test_an_answer_comes_in_any_pieces(said: bytes) -> None:
    for cut in range(1, len(said)):
        answer = Answer()
        answer.feed(said[:cut])
        assert not answer.whole
        answer.feed(said[cut:])
        assert (answer.whole, answer.ends_connection, answer.status, answer.body) == (True, False, 200, b"yes")


async def test_answers_on_the_way_are_passed_over(tls: TlsFiles) -> None:
    gate = RawGate(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + YES)
    async with raw(tls, gate) as caller:
        assert (await caller.call(CALL, 3.0)).status == 200


async def test_an_answer_ends_where_its_connection_does(tls: TlsFiles) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nwebhook-id: x\r\n\r\nall of it")
        writer.close()

    gate = RawGate()
    gate.serve = once  # type: ignore[method-assign]
    async with raw(tls, gate) as caller:
        reply = await caller.call(CALL, 3.0)
    assert (reply.webhook_id, reply.body) == ("x", b"all of it")


@pytest.mark.parametrize("field", ["webhook_id", "webhook_timestamp", "webhook_signature"])
@pytest.mark.parametrize("odd", ["a\r\nx: y", "a\nb", "a\x00", "a\x7f"])
async def test_no_header_holds_another_one(tls: TlsFiles, field: str, odd: str) -> None:
    gate = RawGate(YES)
    async with raw(tls, gate) as caller:
        reply = await caller.call(msgspec.structs.replace(CALL, **{field: odd}), 3.0)
    assert isinstance(reply, wire.GateUnreachable)
    assert (reply.code, gate.connections) == ("http", 0)
