"""One WebSocket to a signer: an outgoing queue bounded in bytes, and one reason why it ended."""

from __future__ import annotations

import asyncio
from collections import deque

from aiohttp import WSCloseCode, web

from appliance import relay

MAX_WAITING_BYTES = 96 * 1024 * 1024
MAX_WAITING_MESSAGES = 16_384
MAX_REASON_BYTES = 120


class Connection:
    """Sends in order from a task of its own. After `end` nothing is sent any more."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        max_bytes: int = MAX_WAITING_BYTES,
        certificate_expires_s: float | None = None,
    ) -> None:
        """`certificate_expires_s`: Unix time at which the signer's TLS certificate ends."""
        self._socket, self._max_bytes = socket, max_bytes
        self.certificate_expires_s = certificate_expires_s
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._close_code = WSCloseCode.OK
        self.reason: str | None = None

    @property
    def waiting(self) -> int:
        """Messages that wait to be written."""
        return len(self._waiting)

    def send(self, data: bytes) -> None:
        """Queue a message. A full queue ends the connection: the signer takes messages too slowly."""
        if self.reason is not None:
            return
        if self._bytes + len(data) > self._max_bytes or len(self._waiting) >= MAX_WAITING_MESSAGES:
            self.end(WSCloseCode.TRY_AGAIN_LATER, "messages are taken too slowly")
            return
        if not self._waiting:
            self._wake.set()
        self._waiting.append(data)
        self._bytes += len(data)

    def end(self, code: WSCloseCode, reason: str) -> None:
        """Close with `code` and `reason`, which the signer sees; the first reason stays."""
        if self.reason is None:
            self._close_code, self.reason = code, reason
            self._waiting.clear()
            self._wake.set()

    def _take(self) -> list[bytes]:
        """What goes into one WebSocket message."""
        if self._bytes <= relay.JOINED_BYTES and len(self._waiting) <= relay.JOINED_MESSAGES:
            taken = list(self._waiting)
            self._waiting.clear()
            return taken
        taken = [self._waiting.popleft()]
        size = len(taken[0])
        while size < relay.JOINED_BYTES and len(taken) < relay.JOINED_MESSAGES and self._waiting:
            taken.append(self._waiting.popleft())
            size += len(taken[-1])
        return taken

    async def drain(self) -> None:
        """Write until the connection ends, then close it."""
        try:
            while self.reason is None:
                while self._waiting:
                    taken = self._take()
                    await self._socket.send_bytes(relay.join(taken))
                    self._bytes -= sum(map(len, taken))
                self._wake.clear()
                if self.reason is None:
                    await self._wake.wait()
        except (OSError, RuntimeError) as error:
            self.end(WSCloseCode.GOING_AWAY, f"cannot be written to: {type(error).__name__}")
        reason = (self.reason or "").encode()[:MAX_REASON_BYTES]
        await self._socket.close(code=self._close_code, message=reason)
