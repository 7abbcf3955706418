"""A listening port that stays there for everybody: bounded connections, handshakes and waiting, before any request.

Sockets are accepted here, not by the event loop's own server, so that a connection is counted before it costs
anything, and that what is not HTTP is answered as all else is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine

import structlog
from aiohttp import web

from appliance.coordinator.admission import network_of
from appliance.coordinator.config import LimitSettings
from appliance.coordinator.http_server import HttpServer
from appliance.coordinator.rates import Limited, Rates
from appliance.expiry import TlsFiles
from policies.errors import Unavailable
from policies.repeats import Repeats, of_strangers

HANDSHAKE_TIMEOUT_S = 10.0
TLS_SHUTDOWN_TIMEOUT_S = 5.0
# How long a receiver may take nothing of an answer.
STALLED_MS = 30_000
BACKLOG = 1024
OUT_OF_FILES_PAUSE_S = 0.1
REPORT_EVERY_S = 10.0
# Files that are no connection of clients: store, signers, logs.
RESERVED_FILES = 512
# How long an address takes to fill its share of connections once more; never slower than so many a second.
REFILL_S, LEAST_PER_S = 10.0, 10.0

log = structlog.get_logger()


class Listener:
    """Serves one application on one port over TLS. `what` names it in logs; `fatal` is told why it accepts no more."""

    def __init__(
        self,
        what: str,
        app: web.Application,
        tls: TlsFiles,
        limits: LimitSettings,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._fatal = fatal
        self._what, self._tls, self._limits = what, tls, limits
        self._runner = web.AppRunner(app, access_log=None)
        self._server: HttpServer | None = None
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_address: Counter[str] = Counter()
        per_address = limits.connections_per_address
        self._rates = Rates(max(per_address / REFILL_S, LEAST_PER_S), per_address, time.monotonic)
        self._most = usable_connections(limits.connections)
        self._refused, self._reported_s = 0, -REPORT_EVERY_S
        self._repeats = Repeats(time.monotonic)
        self._strangers = of_strangers(time.monotonic)
        self.open, self.refused = 0, 0

    async def start(self, host: str, port: int) -> int:
        """Listen; the port. Raises `Unavailable`."""
        await self._runner.setup()
        inner = self._runner.server
        assert inner is not None
        self._server = HttpServer(inner, self._limits.idle_timeout_s, self._strangers)
        try:
            self._sockets = await _listening(host, port)
        except OSError as error:
            await self._runner.cleanup()
            raise Unavailable(
                f"cannot listen on {host}:{port} for {self._what}: {error.strerror}", "free the port or name another"
            ) from error
        for one in self._sockets:
            self._start(self._accept_forever(one))
        return int(self._sockets[0].getsockname()[1])

    async def close(self, timeout_s: float) -> None:
        """Accept nothing more, let requests end for `timeout_s`, close what is open."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in self._sockets:
            one.close()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(timeout_s)
        await self._runner.cleanup()

    def end_withdrawn(self) -> None:
        """Nobody stays who showed a certificate before an authority was withdrawn: who still may connects again."""
        if self._server is None or not self._tls.withdrawn:
            return
        ended = 0
        for protocol in list(self._server.connections):
            transport = protocol.transport
            if transport is None or transport.is_closing() or not transport.get_extra_info("peercert"):
                continue
            if self._tls.outdated(transport):
                transport.close()
                ended += 1
        if ended:
            log.warning("connections-ended", listener=self._what, count=ended, reason="an authority was withdrawn")

    def _start(self, run: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fatal(error)

    async def _accept_forever(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listening)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    await asyncio.sleep(0)
                    continue
                self._report(f"cannot accept: {error.strerror}")
                await asyncio.sleep(OUT_OF_FILES_PAUSE_S)
                continue
            address = network_of(peer[0])
            reason = self._full(address)
            if reason:
                connection.close()
                self._report(reason)
            else:
                self._start(self._serve(connection, address))
            # Accepting may not starve what has been accepted.
            await asyncio.sleep(0)

    def _full(self, address: str) -> str:
        """Why there is no place for one more connection of `address`; empty where there is."""
        if self.open >= self._most:
            return f"{self._most} connections are open"
        if self._by_address[address] >= self._limits.connections_per_address:
            return f"{self._limits.connections_per_address} connections of {address} are open"
        try:
            self._rates.take(address)
        except Limited:
            return f"too many new connections of {address}"
        return ""

    async def _serve(self, connection: socket.socket, address: str) -> None:
        """Shake hands. The connection gives its place back when it is lost, or when this fails."""
        assert self._server is not None
        self.open += 1
        self._by_address[address] += 1
        release = _Once(lambda: self._release(address))
        server = self._server
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: server.protocol(release),
                connection,
                ssl=self._tls.context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT_S,
            )
        except ssl.SSLCertVerificationError as error:
            # A certificate that is not valid, or not of an authority that counts: its operator looks here, too.
            before = self._repeats.due(address, error.verify_message)
            if before is not None and (not_told := self._strangers.not_told()) is not None:
                facts = {"listener": self._what, "address": address, "before": before, **not_told}
                log.warning("certificate-refused", reason=error.verify_message, **facts)
            release()
        except (OSError, EOFError) as error:
            # Its peer did not speak TLS, has no business here, or has gone: nothing that an operator can mend.
            log.debug("no-handshake", listener=self._what, address=address, reason=str(error)[:200])
            release()
        except asyncio.CancelledError:
            release()
            raise
        except Exception:
            # The edge of the process: whatever a stranger's handshake breaks is that connection alone.
            log.exception("handshake-failed", listener=self._what, address=address)
            release()

    def _release(self, address: str) -> None:
        self.open -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _report(self, reason: str) -> None:
        """One line for many."""
        self.refused += 1
        self._refused += 1
        now_s = time.monotonic()
        if now_s - self._reported_s >= REPORT_EVERY_S:
            log.warning("connections-refused", listener=self._what, count=self._refused, reason=reason)
            self._refused, self._reported_s = 0, now_s


class _Once:
    """Calls what it was given, the first time it is called."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def __call__(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


def usable_connections(wanted: int) -> int:
    """Raise the limit of open files for `wanted` connections, as far as is allowed; how many there can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILES
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - RESERVED_FILES)
    if most < wanted:
        log.warning("few-connections", most=most, wanted=wanted, remedy="raise LimitNOFILE of this process")
    return max(most, 1)


async def _listening(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of `host`. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            one = socket.socket(family, socket.SOCK_STREAM)
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(BACKLOG)
            one.setblocking(False)
    except OSError:
        for one in made:
            one.close()
        raise
    return made
