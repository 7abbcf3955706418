"""Asks an enclave for its counters on its own socket, while no signer is attached to it."""

from __future__ import annotations

import socket
from pathlib import Path

from enclave import wire
from policies.errors import Unavailable

TIMEOUT_S = 10.0


def enclave_status(path: Path) -> wire.Status:
    """The `Status` of the enclave listening on `path`. Raises `Unavailable`, also while a signer is attached."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(wire.frame(wire.StatusQuery()))
            size = int.from_bytes(_receive(connection, wire.LENGTH_BYTES), "big")
            if size > wire.MAX_MESSAGE_BYTES:
                raise wire.Malformed("an oversized message")
            return wire.decode(_receive(connection, size), wire.Status)
    except (OSError, EOFError, wire.Malformed) as error:
        raise Unavailable(f"no status from the enclave at {path}: {error}", "stop its signer first") from None


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError("closed by the enclave")
        data += piece
    return data
