"""Carries one HTTP exchange with the operator's validation gate for each `CallGate`, and judges nothing.

What comes back is the handler's answer, verbatim, or `GateUnreachable`. No error becomes anything else, and
nothing is tried twice: retries are the enclave's, within its deadline.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import partial

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

from appliance.expiry import TlsFiles
from appliance.http_failures import describe
from appliance.signer.config import GateSettings
from appliance.tls import client_context
from enclave import wire
from policies.errors import KeymootError

MAX_RETRY_AFTER_S = 86_400
MAX_REASON_CHARS = 512
MAX_CONNECTIONS = 16
SWITCHING_PROTOCOLS = 101
NO_TIMEOUT = aiohttp.ClientTimeout()
REQUEST_ID_HEADER = "x-request-id"
HEADER_LIMITS = {"webhook-id": 512, "webhook-timestamp": 512, "webhook-signature": 2048}


class NoAnswer(KeymootError):
    """The exchange gave nothing that may be shown to the enclave as an answer. `code`: as `GateUnreachable.code`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class GateCaller:
    """A connection pool to one handler. Use `open` inside the event loop and `close` at the end.

    Connections, TLS and the parser are aiohttp's. Its session is left out: nothing that it does for a request (cookies,
    redirects, proxies, authentication, retries) may be done here, and it takes more than half of a call's time.
    """

    def __init__(self, url: str, connector: aiohttp.TCPConnector, files: TlsFiles, mutual: bool) -> None:
        """`files`: what its TLS was made of; `mutual`: whether it shows a certificate of its own."""
        self._url, self.mutual = URL(url), mutual
        self._connector = connector
        self.files = files
        self._place: aiohttp.ClientRequest | None = None

    @classmethod
    def open(cls, settings: GateSettings) -> GateCaller:
        """A caller for the handler in `settings`. Raises `CallerError` for unusable TLS files."""
        make = partial(client_context, settings.ca, settings.certificate, settings.key, ssl.TLSVersion.TLSv1_2)
        files = TlsFiles(make, settings.certificate, settings.key, settings.ca)
        # A name is looked up once for each new connection, and whoever is there must have a certificate for it.
        connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, use_dns_cache=False)
        return cls(settings.url, connector, files, settings.certificate is not None)

    async def close(self) -> None:
        """Close the connections."""
        await self._connector.close()

    async def call(self, call: wire.CallGate, timeout_s: float) -> wire.GateReply | wire.GateUnreachable:
        """One POST, answered within `timeout_s`, connecting included."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(call)
        except TimeoutError:
            return unreachable(call, f"no answer within {call.timeout_ms} ms", "timeout")
        except NoAnswer as error:
            return unreachable(call, str(error), error.code)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return unreachable(call, describe(error), _code(error))

    async def _exchange(self, call: wire.CallGate) -> wire.GateReply:
        request = self._request(call)
        connection = await self._connected()
        try:
            reply = await _ask(connection, request, call.uid)
        except BaseException:
            connection.close()
            raise
        connection.release()
        return reply

    async def _connected(self) -> Connection:
        """A connection on which nothing has been said that was not asked for. Raises `NoAnswer` where the handler talks
        on every new one, too."""
        if self._place is None or self._place.ssl is not self.files.context:
            # A connection is used again only under the very context that it was made under.
            loop = asyncio.get_running_loop()
            self._place = aiohttp.ClientRequest("POST", self._url, loop=loop, ssl=self.files.context)
        for _ in range(MAX_CONNECTIONS + 1):
            connection = await self._connector.connect(self._place, [], NO_TIMEOUT)
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            connection.close()
        raise NoAnswer("http", "it talks before it is asked")

    def _request(self, call: wire.CallGate) -> bytes:
        """What is sent. Raises `ValueError` for a header that would be more than one."""
        fields = [
            f"POST {self._url.raw_path_qs} HTTP/1.1",
            f"host: {self._url.host_port_subcomponent}",
            "content-type: application/json",
            "accept-encoding: identity",
            "user-agent: keymoot",
            f"content-length: {len(call.body)}",
            f"webhook-id: {call.webhook_id}",
            f"webhook-timestamp: {call.webhook_timestamp}",
        ]
        if call.webhook_signature:
            fields.append(f"webhook-signature: {call.webhook_signature}")
        if call.request_id:
            fields.append(f"{REQUEST_ID_HEADER}: {call.request_id}")
        if not all(map(str.isprintable, fields)):
            raise ValueError("a header that is not printable")
        return "\r\n".join([*fields, "", ""]).encode() + call.body


async def _ask(connection: Connection, request: bytes, uid: str) -> wire.GateReply:
    """Send `request`, take the answer. Raises `NoAnswer`, `aiohttp.ClientError`."""
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None:
        raise aiohttp.ServerDisconnectedError
    protocol.set_response_params(read_until_eof=True, auto_decompress=False)
    transport.write(request)
    status = 100
    while 100 <= status < 200 and status != SWITCHING_PROTOCOLS:
        try:
            message, body = await protocol.read()
        except HttpProcessingError as error:
            raise NoAnswer("http", describe(error)) from error
        status = message.code
    if 300 <= status < 400:
        raise NoAnswer("redirect", f"it answered with a redirect ({status})")
    if not 200 <= status <= 599:
        raise NoAnswer("http", f"it answered with status {status}")
    return wire.GateReply(
        uid=uid,
        status=status,
        webhook_id=_header(message.headers, "webhook-id"),
        webhook_timestamp=_header(message.headers, "webhook-timestamp"),
        webhook_signature=_header(message.headers, "webhook-signature"),
        retry_after_s=_retry_after_s(message.headers),
        body=await _read_bounded(body),
    )


def unreachable(call: wire.CallGate, reason: str, code: str) -> wire.GateUnreachable:
    """The answer to `call` where there is none from the handler. `code`: as `GateUnreachable.code`."""
    plain = reason.encode("ascii", "backslashreplace").decode()  # a reason may quote bytes of the handler
    return wire.GateUnreachable(uid=call.uid, reason=plain[:MAX_REASON_CHARS], code=code)


def _code(error: Exception) -> str:
    """`GateUnreachable.code` of an exchange that failed."""
    match error:
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return "tls"
        case aiohttp.ClientResponseError() | ValueError():
            return "http"
        case _:
            return "connect"


async def _read_bounded(body: aiohttp.StreamReader) -> bytes:
    """The body, of at most `MAX_GATE_BODY_BYTES`; the rest of a longer one is never read."""
    pieces: list[bytes] = []
    size = 0
    while not body.at_eof():
        pieces.append(await body.readany())
        size += len(pieces[-1])
        if size > wire.MAX_GATE_BODY_BYTES:
            raise NoAnswer("too-large", f"its answer is larger than {wire.MAX_GATE_BODY_BYTES} bytes")
    return b"".join(pieces)


def _header(headers: CIMultiDictProxy[str], name: str) -> str:
    """The header's value, empty where it is absent. A repeated, oversized or non-ASCII one is no answer."""
    values = headers.getall(name, [])
    if len(values) > 1:
        raise NoAnswer("http", f"its answer repeats the header {name}")
    if values and len(values[0]) > HEADER_LIMITS[name]:
        raise NoAnswer("http", f"its answer has a header {name} of more than {HEADER_LIMITS[name]} characters")
    if values and not values[0].isascii():
        raise NoAnswer("http", f"its answer has a header {name} that is not ASCII")
    return values[0] if values else ""


def _retry_after_s(headers: CIMultiDictProxy[str]) -> int:
    """`Retry-After` in seconds; 0 where it is absent, a date or nonsense: the enclave has a default."""
    value = headers.get("retry-after", "")
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        return 0
    return min(int(value), MAX_RETRY_AFTER_S)
