"""The link to one coordinator: two outbound mutual-TLS 1.3 WebSockets, control and bulk.

They live and die together. While the link is down, what the enclave sends to this coordinator is dropped: the
enclave is told (empty `Presence`), and the ceremonies of this coordinator fail there, by themselves.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NoReturn

import aiohttp
import structlog

from appliance import relay
from appliance.expiry import LOOK_EVERY_S, CertificateWatch, TlsFiles, why_unusable
from appliance.http_failures import describe
from appliance.signer.config import CoordinatorSettings
from appliance.signer.errors import LinkDown, LinkOverflow
from appliance.signer.flow import Backoff, Outbox, until_first_ends
from appliance.tls import client_context
from enclave import wire
from policies.errors import CallerError
from policies.repeats import Repeats

CONNECT_TIMEOUT_S = 10.0
FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 15.0
# A link that held so long was one: after it, back-off starts anew. Less than it takes to notice one that hangs.
LASTING_S = relay.HEARTBEAT_S
MAX_WAITING_MESSAGES = 4096
MAX_WAITING_BYTES = 64 * 1024 * 1024
CHECK_COORDINATOR = "see whether the coordinator runs and its certificate is of the pinned CA"

log = structlog.get_logger()


class CoordinatorLink:
    """Keeps both connections to one coordinator up. `deliver` gets each message, `lost` each loss.

    `announce` is asked at each connection: what it says of the PRSS epoch changes while the enclave runs.
    """

    def __init__(
        self,
        settings: CoordinatorSettings,
        announce: Callable[[], relay.Announce],
        deliver: Callable[[relay.Down], None],
        lost: Callable[[], None],
        source: random.Random,
        connected: Callable[[], None] = lambda: None,
    ) -> None:
        """`connected` is told of each time that both connections came up."""
        self.name = settings.name
        self._settings = settings
        self._announce = announce
        self._deliver = deliver
        self._lost = lost
        self._connected_again = connected
        self._backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S, source)
        self._session: _Session | None = None
        # Why the link is down, or was last; empty before it ever was.
        self.reason = ""
        self._repeats = Repeats(time.monotonic)

    @property
    def up(self) -> bool:
        """Whether both connections are open and announced."""
        return self._session is not None

    @property
    def waiting(self) -> int:
        """Messages that wait to be written."""
        return self._session.waiting if self._session is not None else 0

    def send(self, message: relay.Up, *, bulk: bool) -> bool:
        """Queue a message; False where it was dropped. An overflow takes the link down."""
        return self._session is not None and self._session.send(message, bulk=bulk)

    async def run(self) -> NoReturn:
        """Connect, and connect again whenever the link ends. Nothing that the coordinator does ends this."""
        while True:
            try:
                await self._connected()
            except (LinkDown, LinkOverflow, CallerError) as error:
                kind, told = type(error).__name__, str(error)[:512]
                self.reason = error.what if isinstance(error, LinkDown) else told
                retries = self._repeats.due("link", f"{kind} {told}")
                if retries is not None:
                    facts = {"coordinator": self.name, "kind": kind, "reason": told, "retries": retries}
                    log.warning("coordinator-link-down", **facts)
            if self._session is not None:
                self._session = None
                self._lost()
            await asyncio.sleep(self._backoff.next_s())

    async def _connected(self) -> None:
        """One life of the link. Raises `LinkDown`, `LinkOverflow` or `Malformed` when it ends.

        The TLS files are read anew, so that renewed certificates are used from the next connection on.
        """
        paths = (self._settings.ca, self._settings.certificate, self._settings.key)
        tls = TlsFiles(partial(client_context, *paths), *paths)
        watch = CertificateWatch([], [tls])
        async with _http_session(tls.context) as http:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    control = await self._open(http, relay.CONTROL_PATH)
                    bulk = await self._open(http, relay.BULK_PATH)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                # The coordinator's TLS says no more than that it refuses.
                why = why_unusable(self._settings.certificate, time.time()) or describe(error)
                raise LinkDown(f"coordinator {self.name}: {why}", CHECK_COORDINATOR) from error
            self._session = _Session(self.name, control, bulk)
            self._connected_again()
            self._repeats.over("link")
            log.info("coordinator-link-up", coordinator=self.name)
            started_s = time.monotonic()
            try:
                await until_first_ends(self._session.run(self._deliver), self._until_withdrawn(tls, watch))
            finally:
                if time.monotonic() - started_s > LASTING_S:
                    self._backoff.reset()

    async def _until_withdrawn(self, tls: TlsFiles, watch: CertificateWatch) -> NoReturn:
        """Nobody stays whom an authority let in that was withdrawn since. Raises `LinkDown` then."""
        while not tls.withdrawn:
            await asyncio.sleep(LOOK_EVERY_S)
            watch.look()
        raise LinkDown(
            f"coordinator {self.name}: an authority was withdrawn from {self._settings.ca}", CHECK_COORDINATOR
        )

    async def _open(self, http: aiohttp.ClientSession, path: str) -> aiohttp.ClientWebSocketResponse:
        connection = await http.ws_connect(
            self._settings.url.rstrip("/") + path,
            heartbeat=relay.HEARTBEAT_S,
            max_msg_size=relay.MAX_WEBSOCKET_BYTES,
            timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
        )
        await connection.send_bytes(wire.encode(self._announce()))
        return connection


class _Session:
    """Two open, announced connections."""

    def __init__(
        self, name: str, control: aiohttp.ClientWebSocketResponse, bulk: aiohttp.ClientWebSocketResponse
    ) -> None:
        self._name = name
        self._control, self._bulk = control, bulk
        self._control_outbox = Outbox(f"coordinator {name}", MAX_WAITING_MESSAGES, MAX_WAITING_BYTES)
        self._bulk_outbox = Outbox(f"coordinator {name} (bulk)", MAX_WAITING_MESSAGES, MAX_WAITING_BYTES)
        self._overflow: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def waiting(self) -> int:
        """Messages that wait to be written, on both connections."""
        return len(self._control_outbox) + len(self._bulk_outbox)

    def send(self, message: relay.Up, *, bulk: bool) -> bool:
        """Queue a message; on overflow the session ends and the message is dropped."""
        if self._overflow.done():
            return False
        try:
            (self._bulk_outbox if bulk else self._control_outbox).put("the enclave", wire.encode(message))
        except LinkOverflow as error:
            self._overflow.set_exception(error)
            return False
        return True

    async def run(self, deliver: Callable[[relay.Down], None]) -> None:
        """Serve both connections until one of them ends; raises why."""
        try:
            await until_first_ends(
                self._read(self._control, deliver),
                self._read(self._bulk, deliver),
                self._drain(self._control_outbox, self._control),
                self._drain(self._bulk_outbox, self._bulk),
                self._watch_overflow(),
            )
        finally:
            self._overflow.cancel()
            await asyncio.gather(self._control.close(), self._bulk.close(), return_exceptions=True)

    async def _watch_overflow(self) -> None:
        await self._overflow

    async def _drain(self, outbox: Outbox, connection: aiohttp.ClientWebSocketResponse) -> NoReturn:
        await outbox.drain(
            partial(self._write, connection),
            relay.join,
            at_once=relay.JOINED_MESSAGES,
            at_once_bytes=relay.JOINED_BYTES,
        )

    async def _write(self, connection: aiohttp.ClientWebSocketResponse, data: bytes) -> None:
        try:
            await connection.send_bytes(data)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # RuntimeError: uvloop's word for closed
            raise LinkDown(f"coordinator {self._name}: {describe(error)}", CHECK_COORDINATOR) from error

    async def _read(
        self, connection: aiohttp.ClientWebSocketResponse, deliver: Callable[[relay.Down], None]
    ) -> NoReturn:
        while True:
            message = await connection.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                for down in relay.split(message.data, relay.Down):
                    deliver(down)
            elif message.type is aiohttp.WSMsgType.TEXT:
                raise wire.Malformed(f"coordinator {self._name} sent a text message")
            else:
                said = message.extra if message.type is aiohttp.WSMsgType.CLOSE else ""
                why = f"{str(said)[:200]!r}" if said else message.type.name.lower()
                raise LinkDown(f"coordinator {self._name} closed ({why})", CHECK_COORDINATOR)


def _http_session(tls: ssl.SSLContext) -> aiohttp.ClientSession:
    """A session that follows no redirect, uses no proxy of the environment and keeps no cookie."""
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        trace_configs=[trace],
    )


async def _refuse_redirect(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams
) -> None:
    del session, context
    raise LinkDown(f"{params.url.host} answered with a redirect", CHECK_COORDINATOR)
