"""A recording relay in front of an enclave's socket: every byte between a signer and its enclave."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType

PIECE_BYTES = 65536


class SocketTap:
    """Listens on `path` and passes every connection on to `target`; `heard` is what went by, in each direction."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path, self._target = path, target
        self.heard = {"to enclave": bytearray(), "from enclave": bytearray()}
        self.connections = 0
        self._server = socket.socket(socket.AF_UNIX)
        self._open: list[socket.socket] = []

    def __enter__(self) -> SocketTap:
        self._server.bind(str(self._path))
        self._server.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in (self._server, *self._open):
            _end(one)

    def _accept(self) -> None:
        while True:
            try:
                signer, _ = self._server.accept()
            except OSError:
                return
            enclave = socket.socket(socket.AF_UNIX)
            try:
                enclave.connect(str(self._target))
            except OSError:
                _end(signer)
                continue
            self.connections += 1
            self._open += [signer, enclave]
            for source, sink, direction in ((signer, enclave, "to enclave"), (enclave, signer, "from enclave")):
                threading.Thread(target=self._carry, args=(source, sink, direction), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                self.heard[direction] += data
                sink.sendall(data)
        _end(source)
        _end(sink)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
