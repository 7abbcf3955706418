"""Where signers connect: mutual TLS admits a process, its announcement must fit certificate and roster."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from appliance import relay
from appliance.coordinator.authorities import Authorities
from appliance.coordinator.connection import Connection
from appliance.coordinator.sessions import Session, Signers
from enclave import wire
from policies.errors import CallerError, Refused
from policies.roster import Roster

ANNOUNCE_TIMEOUT_S = 10.0
CONNECTIONS_PER_SIGNER = 4

log = structlog.get_logger()


class Gateway:
    """Serves the control and bulk connections of all signers. What a signer sends wrong ends its connection alone."""

    def __init__(self, roster: Roster, signers: Signers, authorities: Authorities) -> None:
        self._roster, self._signers, self._authorities = roster, signers, authorities
        self._open = 0

    def routes(self) -> list[web.RouteDef]:
        """The two WebSocket paths."""
        return [web.get(relay.CONTROL_PATH, self._control), web.get(relay.BULK_PATH, self._bulk)]

    async def _control(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, bulk=False)

    async def _bulk(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, bulk=True)

    async def _serve(self, request: web.Request, *, bulk: bool) -> web.StreamResponse:
        if self._open >= CONNECTIONS_PER_SIGNER * self._roster.n:
            raise web.HTTPServiceUnavailable(reason="too many connections")
        self._open += 1
        try:
            socket = web.WebSocketResponse(
                heartbeat=relay.HEARTBEAT_S,
                max_msg_size=relay.MAX_WEBSOCKET_BYTES,
                compress=False,
                timeout=1.0,
            )
            await socket.prepare(request)
            connection = Connection(socket, certificate_expires_s=certificate_expires_s(request))
            drain = asyncio.create_task(connection.drain())
            try:
                await self._converse(socket, connection, common_name(request), certificate_der(request), bulk=bulk)
            finally:
                connection.end(WSCloseCode.GOING_AWAY, "the connection has ended")
                await drain
            return socket
        finally:
            self._open -= 1

    async def _converse(
        self,
        socket: web.WebSocketResponse,
        connection: Connection,
        cn: str | None,
        certificate_der: bytes | None,
        *,
        bulk: bool,
    ) -> None:
        """Admit, then pass on messages until the connection ends. What is wrong is told in the close reason."""
        session: Session | None = None
        reason = "the connection was lost"
        try:
            announced = await self._admit(socket, cn, certificate_der)
            session = self._signers.join(announced, connection, bulk=bulk)
            await self._read(socket, connection, session, bulk=bulk)
            reason = connection.reason or "the signer has closed the connection"
        except wire.Malformed as error:
            reason = str(error)
            connection.end(WSCloseCode.UNSUPPORTED_DATA, reason)
        except (CallerError, Refused) as error:
            reason = str(error)
            connection.end(WSCloseCode.POLICY_VIOLATION, reason)
            self._signers.refused(cn, reason)
        finally:
            if session is not None:
                self._signers.leave(session, connection.reason or "the other connection has ended", reason)
        log.info("signer-connection-ended", certificate=cn, bulk=bulk, reason=reason[:300])

    async def _admit(
        self, socket: web.WebSocketResponse, cn: str | None, certificate_der: bytes | None
    ) -> relay.Announce:
        """The announcement of a signer of the roster. Raises `Malformed`, or `Refused` saying what does not fit."""
        try:
            async with asyncio.timeout(ANNOUNCE_TIMEOUT_S):
                messages = await _receive(socket)
        except TimeoutError:
            raise CallerError("no announcement in time") from None
        message = messages[0] if len(messages) == 1 else None
        if not isinstance(message, relay.Announce):
            raise wire.Malformed("the first message is not an announcement")
        enclave = message.enclave
        if enclave.name != cn:
            raise Refused("certificate", f"the certificate is of {cn}, the enclave is {enclave.name}")
        self._authorities.check(enclave.name, certificate_der)
        if enclave.network != self._roster.network:
            raise Refused("network", f"this is network {self._roster.network}, not {enclave.network}")
        if enclave.roster_digest != self._roster.digest():
            raise Refused("roster", "your roster differs from the coordinator's: compare roster.yaml")
        if enclave.index > self._roster.n or self._roster.signer(enclave.index).name != enclave.name:
            raise Refused("roster", f"{enclave.name} is not signer {enclave.index} of the roster")
        if self._roster.signer(enclave.index).fingerprint != enclave.fingerprint:
            raise Refused("roster", f"the roster has another fingerprint for {enclave.name}")
        return message

    async def _read(
        self, socket: web.WebSocketResponse, connection: Connection, session: Session, *, bulk: bool
    ) -> None:
        while connection.reason is None:
            messages = await _receive(socket)
            if not messages:
                return
            for message in messages:
                if connection.reason is None:
                    self._signers.on_message(session, message, bulk=bulk)


async def _receive(socket: web.WebSocketResponse) -> list[relay.Up]:
    """The next messages; none when the connection has ended. Raises `Malformed`."""
    message = await socket.receive()
    if message.type is WSMsgType.BINARY:
        return relay.split(message.data, relay.Up)
    if message.type is WSMsgType.TEXT:
        raise wire.Malformed("a text message")
    return []


def common_name(request: web.Request) -> str | None:
    """The one common name of the client's verified certificate; None where it has none or several."""
    names = [
        value
        for attributes in _certificate(request).get("subject", ())
        for name, value in attributes
        if name == "commonName"
    ]
    return names[0] if len(names) == 1 else None


def certificate_der(request: web.Request) -> bytes | None:
    """The client's verified certificate as it was shown; None where it has none."""
    transport = request.transport
    tls = None if transport is None else transport.get_extra_info("ssl_object")
    return None if tls is None else tls.getpeercert(binary_form=True)


def certificate_expires_s(request: web.Request) -> float | None:
    """When the client's verified certificate ends, as Unix time; None where it has none."""
    until = _certificate(request).get("notAfter")
    return None if until is None else float(ssl.cert_time_to_seconds(until))


def _certificate(request: web.Request) -> dict[str, Any]:
    transport = request.transport
    return (transport.get_extra_info("peercert") if transport is not None else None) or {}
