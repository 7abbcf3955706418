"""Length-prefixed messages over a non-blocking stream socket, both directions bounded."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from itertools import islice

from enclave.errors import Malformed
from enclave.wire import LENGTH_BYTES, MAX_MESSAGE_BYTES

# More costs more: from 128 KiB on, the C library maps memory for each call, and unmaps it afterwards.
READ_BYTES = 64 * 1024
# So much that waits for `flush` is written at once: nobody waits for a long turn to end.
FLUSH_BYTES = 256 * 1024
# Messages in one call.
SEND_AT_ONCE = 64


class Stream:
    """One end of a stream socket. `max_queued_bytes`: what may wait to be written before the peer is cut off."""

    def __init__(
        self,
        sock: socket.socket,
        max_queued_bytes: int,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        sock.setblocking(False)
        self.socket, self.descriptor = sock, sock.fileno()
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
            data: bytes | bytearray = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError(str(error)) from None
        if not data:
            raise EOFError("closed by the other side")
        # With what was left of the last time; the rest is kept.
        if self._incoming:
            self._incoming += data
            data = self._incoming
        position, size = 0, len(data)
        while (start := position + LENGTH_BYTES) <= size:
            length = int.from_bytes(data[position:start], "big")
            if length > self._max_message_bytes:
                raise Malformed(f"a message of {length} bytes exceeds {self._max_message_bytes}")
            if size < start + length:
                break
            position = start + length
            yield bytes(data[start:position])
        if data is self._incoming:
            del self._incoming[:position]
        elif position < size:
            self._incoming += data[position:]

    def queue(self, message: bytes) -> None:
        """Queue a message, to be written with others by `flush`. Raises `EOFError` as `write`."""
        self._outgoing.append(memoryview(len(message).to_bytes(LENGTH_BYTES, "big") + message))
        self._queued_bytes += LENGTH_BYTES + len(message)
        if self._queued_bytes > FLUSH_BYTES:
            self.flush()
            if self._queued_bytes > self._max_queued_bytes:
                raise EOFError("the other side does not read")

    def write(self, message: bytes) -> None:
        """Queue a message and write what fits. Raises `EOFError` where the other side is gone or does not read."""
        self.queue(message)
        self.flush()

    def flush(self) -> None:
        """Write what fits now. Raises `EOFError`."""
        outgoing = self._outgoing
        while outgoing:
            try:
                if len(outgoing) == 1:
                    sent = self.socket.send(outgoing[0])
                else:
                    sent = self.socket.sendmsg(tuple(islice(outgoing, SEND_AT_ONCE)))
            except BlockingIOError:
                return
            except OSError as error:
                raise EOFError(str(error)) from None
            self._queued_bytes -= sent
            while outgoing and sent >= len(outgoing[0]):
                sent -= len(outgoing.popleft())
            if sent:
                outgoing[0] = outgoing[0][sent:]

    def close(self) -> None:
        """Close the socket and forget what was queued."""
        self._outgoing.clear()
        self._queued_bytes = 0
        self.socket.close()
