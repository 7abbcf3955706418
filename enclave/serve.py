"""The enclave's loop: one blocking epoll over the signer's socket, the presign worker, the HSM thread and timers."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from enclave.assembly import EnclaveCore
from enclave.clock_watch import ClockWatch
from enclave.errors import CallerError, Malformed
from enclave.framing import Stream
from enclave.log import Log
from enclave.wire import FromEnclave, ToEnclave, decode, encode
from enclave.worker import FromWorker
from policies.repeats import Repeats

MAX_QUEUED_TO_SIGNER_BYTES = 64 * 1024 * 1024
# What all batches under way may have waiting at most: 4 of 16,384 presignatures with 14 peers, 192 bytes each.
MAX_QUEUED_TO_WORKER_BYTES = 256 * 1024 * 1024
LONGEST_WAIT_S = 1.0
_UCRED = struct.Struct("3i")

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
# The listener, the signer, the worker, the HSM thread and signals.
MOST_READY = 8


class WorkerGone(Exception):
    """The presign worker ended. Terminal: it can only be forked before the PKCS#11 module is loaded."""


class Server:
    """Owns the sockets. One signer at a time, known by its user id."""

    def __init__(
        self,
        path: Path,
        signer_uid: int,
        core: EnclaveCore,
        worker: Stream,
        hsm: tuple[int, Callable[[], None]],
        clocks: ClockWatch,
        log: Log,
    ) -> None:
        """`hsm`: a descriptor that is readable when the HSM thread has results, and what takes them in."""
        self._path, self._signer_uid = path, signer_uid
        self._dispatch, self._batches, self._effects = core.dispatch, core.batches, core.effects
        self._reload = core.reload.run
        self._worker, self._timers, self._log = worker, core.timers, log
        self._hsm_fd, self._drain_hsm = hsm
        self._clocks = clocks
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], object]] = {}
        # Of which streams' descriptors it is told when they can be written to.
        self._blocked: set[int] = set()
        self._signer: Stream | None = None
        self._stopping = self._hung_up = False
        self._repeats = Repeats(time.monotonic)

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT. Raises `WorkerGone`, and `MemoryInDoubt` before anything else is done."""
        handlers = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop, signal.SIGUSR1: self._clocks.signal}
        handlers[signal.SIGHUP] = self._on_hangup
        with self._epoll, _listening(self._path) as listener, _wakeup(handlers) as wakeup_fd:
            self._watch(listener.fileno(), lambda _: self._accept(listener))
            self._watch(wakeup_fd, lambda _: os.read(wakeup_fd, 4096))
            self._watch(self._worker.descriptor, self._serve_worker)
            self._watch(self._hsm_fd, lambda _: self._drain_hsm())
            ready()
            try:
                while not self._stopping:
                    self._turn()
            finally:
                if self._signer is not None:
                    self._disconnect("stopping")

    @property
    def attached(self) -> bool:
        """Whether a signer process is connected."""
        return self._signer is not None

    @property
    def waiting(self) -> int:
        """How many messages wait to be written to the signer."""
        return self._signer.waiting if self._signer is not None else 0

    def emit(self, message: FromEnclave) -> None:
        """Send to the attached signer, at the end of this turn. One that does not read is cut off."""
        if self._signer is not None:
            try:
                self._signer.queue(encode(message))
            except EOFError as error:
                # Not from here: the caller may be in the middle of handling what this signer said.
                reason = str(error)
                self._timers.after(0.0, lambda: self._disconnect(reason))

    def to_worker(self, message: bytes) -> None:
        """Send to the presign worker."""
        try:
            self._worker.write(message)
        except EOFError as error:
            raise WorkerGone(str(error)) from None

    def _turn(self) -> None:
        self._watch_writes(self._worker)
        if self._signer is not None:
            self._watch_writes(self._signer)
        ready = self._epoll.poll(self._timers.next_in_s(LONGEST_WAIT_S), MOST_READY)
        self._clocks.check()
        if self._hung_up:
            self._hung_up = False
            self._reload()
        for descriptor, events in ready:
            # One that is watched no more since: nothing is due.
            handler = self._handlers.get(descriptor)
            if handler is not None:
                handler(events)
        self._timers.fire()
        self._flush()

    def _flush(self) -> None:
        """What was said to the signer in this turn leaves it together."""
        if self._signer is not None:
            try:
                self._signer.flush()
            except EOFError as error:
                self._disconnect(str(error))

    def _watch(self, descriptor: int, handler: Callable[[int], object]) -> None:
        """Call `handler(events)` when it can be read from."""
        self._epoll.register(descriptor, READ)
        self._handlers[descriptor] = handler

    def _watch_writes(self, stream: Stream) -> None:
        """Be told when it can be written to, where something is left to write."""
        descriptor = stream.descriptor
        if stream.wants_to_write != (descriptor in self._blocked):
            self._blocked ^= {descriptor}
            self._epoll.modify(descriptor, READ | WRITE if stream.wants_to_write else READ)

    # --- the signer ---

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            self._refused(f"connection not accepted: {error}")
            return
        uid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
        if uid != self._signer_uid:
            self._refused(f"user id {uid} is not the signer's")
            connection.close()
        elif self._signer is not None:
            self._refused("a signer is attached already")
            connection.close()
        else:
            self._signer = Stream(connection, MAX_QUEUED_TO_SIGNER_BYTES)
            self._watch(self._signer.descriptor, self._serve_signer)
            self._effects.attach(self.emit)

    def _refused(self, reason: str) -> None:
        before = self._repeats.due("connection", reason)
        if before is not None:
            self._log.warning("connection refused", reason=reason, before=before)

    def _serve_signer(self, events: int) -> None:
        stream = self._signer
        if stream is None:
            return
        try:
            if events & WRITE:
                stream.flush()
            if events & ~WRITE:
                for data in stream.read():
                    if self._signer is not stream:
                        return
                    self._dispatch.handle(decode(data, ToEnclave))  # type: ignore[arg-type]
        except (EOFError, Malformed, CallerError) as error:
            self._disconnect(str(error))

    def _disconnect(self, reason: str) -> None:
        if self._signer is None:
            return
        stream, self._signer = self._signer, None
        self._epoll.unregister(stream.descriptor)
        del self._handlers[stream.descriptor]
        self._blocked.discard(stream.descriptor)
        stream.close()
        self._dispatch.on_detached()
        self._log.info("signer detached", reason=reason)

    # --- the worker ---

    def _serve_worker(self, events: int) -> None:
        try:
            if events & WRITE:
                self._worker.flush()
            if events & ~WRITE:
                for data in self._worker.read():
                    self._batches.on_worker(decode(data, FromWorker))  # type: ignore[arg-type]
        except (EOFError, Malformed) as error:
            raise WorkerGone(str(error)) from None

    def _on_hangup(self) -> None:
        """In the middle of anything: carried out by the loop."""
        self._hung_up = True

    def _stop(self) -> None:
        self._stopping = True


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """The listening Unix socket at `path`, mode 0660; a stale one is replaced."""
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    old_mask = os.umask(0o117)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise CallerError(f"cannot listen on {path}: {error.strerror}; is its directory there?") from None
    finally:
        os.umask(old_mask)
    listener.listen(8)
    listener.setblocking(False)
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


@contextmanager
def _wakeup(handlers: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[int]:
    """A descriptor that becomes readable when one of these signals arrives; its handler is called then."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_fd = signal.set_wakeup_fd(writer)
    previous = {number: signal.signal(number, _without_arguments(handler)) for number, handler in handlers.items()}
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _without_arguments(handler: Callable[[], None]) -> Callable[[int, object], None]:
    return lambda _number, _frame: handler()
