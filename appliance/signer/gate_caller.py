"""Carries one HTTP exchange with the operator's validation gate for each `CallGate`, and judges nothing.

What comes back is the handler's answer, verbatim, or `GateUnreachable`. No error becomes anything else, and
nothing is tried twice: retries are the enclave's, within its deadline.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import partial

import aiohttp
from multidict import CIMultiDictProxy

from appliance.expiry import TlsFiles
from appliance.http_failures import describe
from appliance.signer.config import GateSettings
from appliance.tls import client_context
from enclave import wire
from policies.errors import KeymootError

MAX_RETRY_AFTER_S = 86_400
MAX_REASON_CHARS = 512
MAX_CONNECTIONS = 16
REQUEST_ID_HEADER = "x-request-id"
HEADER_LIMITS = {"webhook-id": 512, "webhook-timestamp": 512, "webhook-signature": 2048}


class NoAnswer(KeymootError):
    """The exchange gave nothing that may be shown to the enclave as an answer. `code`: as `GateUnreachable.code`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class GateCaller:
    """A connection pool to one handler. Use `open` inside the event loop and `close` at the end."""

    def __init__(self, url: str, session: aiohttp.ClientSession, files: TlsFiles, mutual: bool) -> None:
        """`files`: what its TLS was made of; `mutual`: whether it shows a certificate of its own."""
        self._url, self.mutual = url, mutual
        self._session = session
        self.files = files

    @classmethod
    def open(cls, settings: GateSettings) -> GateCaller:
        """A caller for the handler in `settings`. Raises `CallerError` for unusable TLS files."""
        make = partial(client_context, settings.ca, settings.certificate, settings.key, ssl.TLSVersion.TLSv1_2)
        files = TlsFiles(make, settings.certificate, settings.key, settings.ca)
        session = aiohttp.ClientSession(
            # A name is looked up once for each new connection, and whoever is there must have a certificate for it.
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, use_dns_cache=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
        )
        return cls(settings.url, session, files, settings.certificate is not None)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

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
        headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": "keymoot",
            "webhook-id": call.webhook_id,
            "webhook-timestamp": call.webhook_timestamp,
        }
        if call.webhook_signature:
            headers["webhook-signature"] = call.webhook_signature
        if call.request_id:
            headers[REQUEST_ID_HEADER] = call.request_id
        # A connection is used again only under the very context that it was made under.
        async with self._session.post(
            self._url,
            data=call.body,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(),
            ssl=self.files.context,
        ) as response:
            if 300 <= response.status < 400:
                raise NoAnswer("redirect", f"it answered with a redirect ({response.status})")
            if not 200 <= response.status <= 599:
                raise NoAnswer("http", f"it answered with status {response.status}")
            body = await _read_bounded(response)
            return wire.GateReply(
                uid=call.uid,
                status=response.status,
                webhook_id=_header(response.headers, "webhook-id"),
                webhook_timestamp=_header(response.headers, "webhook-timestamp"),
                webhook_signature=_header(response.headers, "webhook-signature"),
                retry_after_s=_retry_after_s(response.headers),
                body=body,
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


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body, of at most `MAX_GATE_BODY_BYTES`; the rest of a longer one is never read."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > wire.MAX_GATE_BODY_BYTES:
            response.close()
            raise NoAnswer("too-large", f"its answer is larger than {wire.MAX_GATE_BODY_BYTES} bytes")
        pieces.append(piece)
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
