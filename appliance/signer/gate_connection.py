"""One connection to the operator's handler: one exchange at a time, its answer parsed strictly, by llhttp.

aiohttp's client would do for a call much that may not be done here (cookies, redirects, proxies, retries), and takes
several times as long.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

from enclave.wire import MAX_GATE_BODY_BYTES
from policies.errors import KeymootError

MAX_HEAD_BYTES = 64 * 1024
# Chunks of one byte each take six.
MAX_ANSWER_BYTES = MAX_HEAD_BYTES + 8 * MAX_GATE_BODY_BYTES
SWITCHING_PROTOCOLS = 101
SIGNED_FIELDS = (b"webhook-id", b"webhook-timestamp", b"webhook-signature")
RETRY_AFTER = b"retry-after"
_KEPT = {*SIGNED_FIELDS, RETRY_AFTER}
_LENGTHS = {b"content-length", b"transfer-encoding"}


class NoAnswer(KeymootError):
    """The exchange gave nothing that may be shown to the enclave as an answer. `code`: as `GateUnreachable.code`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Answer:
    """What has come of one answer. `status` is None before its head is there, `whole` says that nothing is missing.
    `fields`: every value of `SIGNED_FIELDS` and `RETRY_AFTER`."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.whole = False
        self.ends_connection = False
        self.fields: dict[bytes, list[bytes]] = {}
        self._pieces: list[bytes] = []
        self._body_bytes, self._bytes = 0, 0
        self._has_length = False
        self._parser = httptools.HttpResponseParser(self)

    @property
    def body(self) -> bytes:
        """Of at most `MAX_GATE_BODY_BYTES`."""
        return b"".join(self._pieces)

    def feed(self, data: bytes) -> None:
        """More has come, before it was `whole`. Raises `NoAnswer`, and nothing else, for what is none or too large."""
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.status = SWITCHING_PROTOCOLS
        except httptools.HttpParserError as error:
            if not self.whole:
                raise NoAnswer("http", f"its answer is no HTTP: {error}") from None
            self.ends_connection = True
        if self.status == SWITCHING_PROTOCOLS:
            raise NoAnswer("http", f"it answered with status {self.status}")
        if self._body_bytes > MAX_GATE_BODY_BYTES or self._bytes > MAX_ANSWER_BYTES:
            raise NoAnswer("too-large", f"its answer is larger than {MAX_GATE_BODY_BYTES} bytes")
        if self.status is None and self._bytes > MAX_HEAD_BYTES:
            raise NoAnswer("http", f"the head of its answer is larger than {MAX_HEAD_BYTES} bytes")
        if self.whole:
            del self._parser  # it refers to this answer, which need not wait for the garbage collector

    def end(self) -> None:
        """The connection has ended: an answer that names no length has, too. Raises `NoAnswer`."""
        if self.status is None:
            raise NoAnswer("connect", "it closed the connection without an answer")
        if not self.whole and self._has_length:
            raise NoAnswer("connect", "it closed the connection within its answer")
        self.whole = self.ends_connection = True

    # --- called by the parser ---

    def on_message_begin(self) -> None:
        """What comes behind an answer was not asked for."""
        if self.whole:
            self.ends_connection = True
        elif self.status is None:
            self.fields.clear()
            self._has_length = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or behind the body, where none counts."""
        if self.status is not None:
            return
        name = name.lower()
        if name in _KEPT:
            self.fields.setdefault(name, []).append(value.rstrip(b" \t"))
        elif name in _LENGTHS:
            self._has_length = True

    def on_headers_complete(self) -> None:
        """Heads of answers on the way (1xx) are passed over."""
        status = self._parser.get_status_code()
        if self.status is None and (not 100 <= status < 200 or status == SWITCHING_PROTOCOLS):
            self.status = status
            self.ends_connection = not self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if not self.whole:
            self._pieces.append(data)
            self._body_bytes += len(data)

    def on_message_complete(self) -> None:
        """The end of the answer, or of one on the way."""
        self.whole = self.status is not None


class GateConnection(asyncio.Protocol):
    """`usable`: it is open, and nothing came that was not asked for. `idle_since_s`: for whoever keeps it."""

    def __init__(self) -> None:
        self.usable = False
        self.idle_since_s = 0.0
        self._transport: asyncio.Transport
        self._asked: asyncio.Future[Answer] | None = None
        self._answer = Answer()

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        """Send `request`, take its answer. Raises `NoAnswer`, `OSError`; `TimeoutError` where it takes longer."""
        if not self.usable:
            raise NoAnswer("http", "it talks before it is asked")
        loop = asyncio.get_running_loop()
        self._answer = Answer()
        self._asked = loop.create_future()
        timer = loop.call_later(timeout_s, self._fail, TimeoutError())
        self._transport.write(request)
        try:
            return await self._asked
        finally:
            timer.cancel()
            self._asked = None

    def close(self) -> None:
        """Close it; nothing more is asked here."""
        self.usable = False
        self._transport.close()

    # --- called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As of `Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self.usable = True

    def data_received(self, data: bytes) -> None:
        """As of `Protocol`."""
        asked, answer = self._asked, self._answer
        if asked is None or asked.done():
            self._abort()
            return
        try:
            answer.feed(data)
        except NoAnswer as error:
            self._fail(error)
            return
        if answer.whole:
            self.usable = not answer.ends_connection
            asked.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """As of `Protocol`."""
        self.usable = False
        asked, answer = self._asked, self._answer
        if asked is None or asked.done():
            return
        try:
            if exc is not None:
                raise exc
            answer.end()
        except (NoAnswer, OSError) as error:
            asked.set_exception(error)
        else:
            asked.set_result(answer)

    def _abort(self) -> None:
        self.usable = False
        self._transport.abort()

    def _fail(self, error: Exception) -> None:
        self._abort()
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(error)
