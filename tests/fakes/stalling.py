"""A TCP relay that can stop forwarding without closing anything: what a half-open connection looks like."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

LOOPBACK = "127.0.0.1"
PIECE_BYTES = 65536


class StallingRelay:
    """Listens on a port of its own and passes everything on to `target`. `stall` freezes what is open by then, both
    ways; later connections pass."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server((LOOPBACK, 0))
        self.port: int = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        self._flows: list[threading.Event] = []
        self.connections = 0

    def __enter__(self) -> StallingRelay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in (self._server, *self._open):
            _end(one)

    def stall(self) -> None:
        """Forward nothing more of what is open now, and close nothing either."""
        for flows in self._flows:
            flows.clear()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((LOOPBACK, self._target))
            except OSError:
                _end(near)  # nobody listens there yet
                continue
            flows = threading.Event()
            flows.set()
            self.connections += 1
            self._open += [near, far]
            self._flows.append(flows)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink, flows), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, flows: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                if not flows.is_set():
                    return  # read and lost: neither side hears of it
                sink.sendall(data)
        if flows.is_set():
            _end(source)
            _end(sink)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
