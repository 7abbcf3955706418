"""Reading the body of a request: bounded in size, in time, and in what all of them hold together."""

from __future__ import annotations

import asyncio

from aiohttp import web

from enclave.wire import MAX_BODY_BYTES
from policies.errors import CallerError, KeymootError, Unavailable

MAX_HELD_BYTES = 64 * 1024 * 1024


class TooSlow(KeymootError):
    """The body did not come in time."""


class TooLarge(CallerError):
    """The body is larger than a request can be."""


class UnsupportedMedia(CallerError):
    """The body is of another type, or compressed."""


class Bodies:
    """Reads bodies of at most `MAX_BODY_BYTES` within `timeout_s`. All that are being read hold at most `max_held`."""

    def __init__(self, timeout_s: float, max_held: int = MAX_HELD_BYTES) -> None:
        self._timeout_s, self._max_held = timeout_s, max_held
        self._held = 0

    async def read(self, request: web.Request) -> bytes:
        """The whole body. Raises `UnsupportedMedia`, `TooLarge`, `TooSlow`, `CallerError` for what is no HTTP,
        `Unavailable`."""
        if request.content_type != "application/json":
            raise UnsupportedMedia("Content-Type: the body must be application/json")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMedia("Content-Encoding: send the body as it is, not compressed")
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise TooLarge(f"the body has {request.content_length} bytes, more than {MAX_BODY_BYTES}")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._read(request)
        except TimeoutError:
            raise TooSlow(f"the body did not come within {self._timeout_s:g} s") from None
        except ConnectionError:
            raise CallerError("the sender went away before the body's end") from None
        except web.RequestPayloadError as error:
            raise CallerError(f"body: {str(error)[:200]}") from None

    async def _read(self, request: web.Request) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await request.content.readany():
                size += len(piece)
                self._held += len(piece)
                pieces.append(piece)
                if size > MAX_BODY_BYTES:
                    raise TooLarge(f"the body has more than {MAX_BODY_BYTES} bytes")
                if self._held > self._max_held:
                    raise Unavailable("too many bodies are being read", "try again shortly")
            return b"".join(pieces)
        finally:
            self._held -= size
