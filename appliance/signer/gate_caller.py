"""Carries one HTTP exchange with the operator's validation gate for each `CallGate`, and judges nothing.

What comes back is the handler's answer, verbatim, or `GateUnreachable`. No error becomes anything else, and
nothing is tried twice: retries are the enclave's, within its deadline.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from functools import partial

from yarl import URL

from appliance.expiry import TlsFiles
from appliance.http_failures import describe
from appliance.signer.config import GateSettings
from appliance.signer.gate_connection import RETRY_AFTER, SIGNED_FIELDS, Answer, GateConnection, NoAnswer
from appliance.tls import client_context
from enclave import wire

MAX_RETRY_AFTER_S = 86_400
MAX_REASON_CHARS = 512
MAX_CONNECTIONS = 16
# Handlers close what was idle for longer, as a rule later than this.
KEPT_IDLE_S = 15.0
HTTPS_PORT = 443
REQUEST_ID_HEADER = "x-request-id"
MAX_FIELD_BYTES = dict(zip(SIGNED_FIELDS, (512, 512, 2048), strict=True))


class GateCaller:
    """The connections to one handler, kept while they are used. Use `open` inside the event loop and `close` at the
    end; at most `MAX_CONNECTIONS` calls at a time, for which their user cares."""

    def __init__(self, url: str, files: TlsFiles, mutual: bool) -> None:
        """`files`: what its TLS is made of; `mutual`: whether it shows a certificate of its own."""
        self._url, self.mutual = URL(url), mutual
        self._head = "\r\n".join(
            (
                f"POST {self._url.raw_path_qs} HTTP/1.1",
                f"host: {self._url.host_port_subcomponent}",
                "content-type: application/json",
                "accept-encoding: identity",
                "user-agent: keymoot",
            )
        )
        self.files = files
        # Those used last are at the end, and used again first. Each with the context that it was made under.
        self._idle: list[tuple[GateConnection, ssl.SSLContext]] = []
        self._sweeping: asyncio.TimerHandle | None = None

    @classmethod
    def open(cls, settings: GateSettings) -> GateCaller:
        """A caller for the handler in `settings`. Raises `CallerError` for unusable TLS files."""
        make = partial(client_context, settings.ca, settings.certificate, settings.key, ssl.TLSVersion.TLSv1_2)
        files = TlsFiles(make, settings.certificate, settings.key, settings.ca)
        return cls(settings.url, files, settings.certificate is not None)

    async def close(self) -> None:
        """Close the connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection, _ in self._idle:
            connection.close()
        self._idle.clear()

    async def call(self, call: wire.CallGate, timeout_s: float) -> wire.GateReply | wire.GateUnreachable:
        """One POST, answered within `timeout_s`, connecting included."""
        try:
            return await self._exchange(call, timeout_s)
        except TimeoutError:
            return unreachable(call, f"no answer within {call.timeout_ms} ms", "timeout")
        except NoAnswer as error:
            return unreachable(call, str(error), error.code)
        except ssl.SSLError as error:
            return unreachable(call, describe(error), "tls")
        except OSError as error:
            return unreachable(call, describe(error), "connect")
        except ValueError as error:
            return unreachable(call, describe(error), "http")

    async def _exchange(self, call: wire.CallGate, timeout_s: float) -> wire.GateReply:
        request = self._request(call)
        loop, context = asyncio.get_running_loop(), self.files.context
        connection = self._kept(context)
        if connection is None:
            deadline_s = loop.time() + timeout_s
            async with asyncio.timeout_at(deadline_s):
                connection = await self._connect(context)
            timeout_s = deadline_s - loop.time()
        try:
            reply = _reply(call.uid, await connection.ask(request, timeout_s))
        except BaseException:
            connection.close()
            raise
        self._keep(connection, context, loop)
        return reply

    async def _connect(self, context: ssl.SSLContext) -> GateConnection:
        """A new connection. A name is looked up for each, and whoever is there must have a certificate for it."""
        host, port = self._url.raw_host or "", self._url.port or HTTPS_PORT
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(GateConnection, host, port, ssl=context)
        except socket.gaierror:
            raise NoAnswer("connect", f"there is no host {host}") from None
        return connection

    def _kept(self, context: ssl.SSLContext) -> GateConnection | None:
        """One that was used before, under the very context that new ones are made under."""
        while self._idle:
            connection, made_under = self._idle.pop()
            if connection.usable and made_under is context:
                return connection
            connection.close()
        return None

    def _keep(self, connection: GateConnection, context: ssl.SSLContext, loop: asyncio.AbstractEventLoop) -> None:
        if not connection.usable:
            connection.close()
            return
        connection.idle_since_s = loop.time()
        self._idle.append((connection, context))
        if self._sweeping is None:
            self._sweeping = loop.call_later(KEPT_IDLE_S, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what nobody has needed for long."""
        long_ago_s = loop.time() - KEPT_IDLE_S
        while self._idle and self._idle[0][0].idle_since_s <= long_ago_s:
            self._idle.pop(0)[0].close()
        self._sweeping = loop.call_later(KEPT_IDLE_S / 2, self._sweep, loop) if self._idle else None

    def _request(self, call: wire.CallGate) -> bytes:
        """What is sent. Raises `ValueError` for a header that would be more than one."""
        fields = [
            f"content-length: {len(call.body)}",
            f"webhook-id: {call.webhook_id}",
            f"webhook-timestamp: {call.webhook_timestamp}",
        ]
        if call.webhook_signature:
            fields.append(f"webhook-signature: {call.webhook_signature}")
        if call.request_id:
            fields.append(f"{REQUEST_ID_HEADER}: {call.request_id}")
        if not "".join(fields).isprintable():
            raise ValueError("a header that is not printable")
        return "\r\n".join([self._head, *fields, "", ""]).encode() + call.body


def _reply(uid: str, answer: Answer) -> wire.GateReply:
    """What the enclave is given. Raises `NoAnswer`."""
    status = answer.status or 0
    if 300 <= status < 400:
        raise NoAnswer("redirect", f"it answered with a redirect ({status})")
    if not 200 <= status <= 599:
        raise NoAnswer("http", f"it answered with status {status}")
    fields = answer.fields
    webhook_id, timestamp, signature = [_field(fields.get(name), name) for name in SIGNED_FIELDS]
    after_s = _retry_after_s(fields.get(RETRY_AFTER))
    return wire.GateReply(uid, status, webhook_id, timestamp, signature, after_s, answer.body)


def unreachable(call: wire.CallGate, reason: str, code: str) -> wire.GateUnreachable:
    """The answer to `call` where there is none from the handler. `code`: as `GateUnreachable.code`."""
    plain = reason.encode("ascii", "backslashreplace").decode()  # a reason may quote bytes of the handler
    return wire.GateUnreachable(uid=call.uid, reason=plain[:MAX_REASON_CHARS], code=code)


def _field(values: list[bytes] | None, name: bytes) -> str:
    """The value of a field, empty where it is absent. A repeated, oversized or non-ASCII one is no answer."""
    if values is None:
        return ""
    value = values[0]
    if len(values) > 1:
        raise NoAnswer("http", f"its answer repeats the header {name.decode()}")
    if len(value) > MAX_FIELD_BYTES[name]:
        raise NoAnswer(
            "http", f"its answer has a header {name.decode()} of more than {MAX_FIELD_BYTES[name]} characters"
        )
    if not value.isascii():
        raise NoAnswer("http", f"its answer has a header {name.decode()} that is not ASCII")
    return value.decode()


def _retry_after_s(values: list[bytes] | None) -> int:
    """`Retry-After` in seconds; 0 where it is absent, a date or nonsense: the enclave has a default."""
    if values is None or not values[0].isdigit() or len(values[0]) > 9:
        return 0
    return min(int(values[0]), MAX_RETRY_AFTER_S)
