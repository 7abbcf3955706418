"""Length-prefixed messages over a non-blocking stream socket, both directions bounded."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator

from enclave.errors import Malformed
from enclave.wire import LENGTH_BYTES, MAX_MESSAGE_BYTES

READ_BYTES = 1024 * 1024


class Stream:
    """One end of a stream socket. `max_queued_bytes`: what may wait to be written before the peer is cut off."""

    def __init__(
        self,
        sock: socket.socket,
        max_queued_bytes: int,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._incoming = bytearray()
        self._outgoing: deque[memoryview] = deque()
        self._queued_bytes = 0
        self._max_queued_bytes = max_queued_bytes
        self._max_message_bytes = max_message_bytes

    @property
    def wants_to_write(self) -> bool:
        """Whether something is queued."""
        return bool(self._outgoing)

    @property
    def waiting(self) -> int:
        """How many messages wait to be written."""
        return len(self._outgoing)

    def read(self) -> Iterator[bytes]:
        """Whole messages that have arrived. Raises `Malformed` for an oversized one, `EOFError` at the end."""
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError(str(error)) from None
        if not data:
            raise EOFError("closed by the other side")
        self._incoming += data
        yield from self._messages()

    def write(self, message: bytes) -> None:
        """Queue a message and write what fits. Raises `EOFError` where the other side is gone or does not read."""
        self._outgoing.append(memoryview(len(message).to_bytes(LENGTH_BYTES, "big") + message))
        self._queued_bytes += LENGTH_BYTES + len(message)
        self.flush()
        if self._queued_bytes > self._max_queued_bytes:
            raise EOFError("the other side does not read")

    def flush(self) -> None:
        """Write what fits now. Raises `EOFError`."""
        while self._outgoing:
            try:
                sent = self.socket.send(self._outgoing[0])
            except BlockingIOError:
                return
            except OSError as error:
                raise EOFError(str(error)) from None
            self._queued_bytes -= sent
            if sent == len(self._outgoing[0]):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = self._outgoing[0][sent:]

    def close(self) -> None:
        """Close the socket and forget what was queued."""
        self._outgoing.clear()
        self._queued_bytes = 0
        self.socket.close()

    def _messages(self) -> Iterator[bytes]:
        position = 0
        while len(self._incoming) - position >= LENGTH_BYTES:
            length = int.from_bytes(self._incoming[position : position + LENGTH_BYTES], "big")
            if length > self._max_message_bytes:
                raise Malformed(f"a message of {length} bytes exceeds {self._max_message_bytes}")
            end = position + LENGTH_BYTES + length
            if len(self._incoming) < end:
                break
            yield bytes(self._incoming[position + LENGTH_BYTES : end])
            position = end
        del self._incoming[:position]
