"""Reading the body of a request: bounded in size, in time, and in what all of them hold together."""

from __future__ import annotations

import asyncio
from collections import Counter

from aiohttp import web

from enclave.wire import MAX_BODY_BYTES
from policies.errors import CallerError, KeymootError, Unavailable

MAX_HELD_BYTES = 64 * 1024 * 1024
MAX_HELD_BY_ADDRESS_BYTES = 8 * 1024 * 1024


class TooSlow(KeymootError):
    """The body did not come in time."""


class TooLarge(CallerError):
    """The body is larger than a request can be."""


class UnsupportedMedia(CallerError):
    """The body is of another type, or compressed."""


class Bodies:
    """Reads bodies of at most `MAX_BODY_BYTES` within `timeout_s`. All that are being read hold at most `max_held`
    bytes, those of one address at most `max_held_by_address`.

    Where that is full, the one that has been read longest ends, of whom holds most: not the newcomer.
    """

    def __init__(
        self, timeout_s: float, max_held: int = MAX_HELD_BYTES, max_held_by_address: int = MAX_HELD_BY_ADDRESS_BYTES
    ) -> None:
        self._timeout_s, self._max_held, self._max_held_by_address = timeout_s, max_held, max_held_by_address
        self._held: Counter[str] = Counter()
        # By address and client, in the order in which they began. None is without a byte.
        self._reading: dict[str, dict[str, dict[_Reading, None]]] = {}

    @property
    def held_bytes(self) -> int:
        """Of all bodies that are being read."""
        return self._held.total()

    async def read(self, request: web.Request, address: str, client: str) -> bytes:
        """The whole body, charged to `address` and to whom it claims to be of. Raises `UnsupportedMedia`, `TooLarge`,
        `TooSlow`, `CallerError` for what is no HTTP, `Unavailable`."""
        if request.content_type != "application/json":
            raise UnsupportedMedia("Content-Type: the body must be application/json")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMedia("Content-Encoding: send the body as it is, not compressed")
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise TooLarge(f"the body has {request.content_length} bytes, more than {MAX_BODY_BYTES}")
        if request.content.is_eof() and request.content.exception() is None:
            # It came whole with its head, as small ones do: nothing is waited for, and nothing held meanwhile.
            return _bounded(request.content.read_nowait())
        reading = _Reading(address, client, asyncio.timeout(self._timeout_s))
        try:
            async with reading.limit:
                return await self._read(request, reading)
        except TimeoutError:
            if reading.ended:
                raise _full() from None
            raise TooSlow(f"the body did not come within {self._timeout_s:g} s") from None
        except ConnectionError:
            raise CallerError("the sender went away before the body's end") from None
        except web.RequestPayloadError as error:
            raise CallerError(f"body: {str(error)[:200]}") from None

    async def _read(self, request: web.Request, reading: _Reading) -> bytes:
        pieces: list[bytes] = []
        try:
            while piece := await request.content.readany():
                if reading.size + len(piece) > MAX_BODY_BYTES:
                    raise TooLarge(f"the body has more than {MAX_BODY_BYTES} bytes")
                self._hold(reading, len(piece))
                if reading.ended:
                    raise _full()
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            self._release(reading)

    def _hold(self, reading: _Reading, size: int) -> None:
        """`size` bytes more of it. Ends what holds too much, maybe this one."""
        if reading.ended:
            return
        address = reading.address
        self._reading.setdefault(address, {}).setdefault(reading.client, {})[reading] = None
        reading.size += size
        self._held[address] += size
        while self._held[address] > self._max_held_by_address:
            self._end_one(address)
        while self._held.total() > self._max_held:
            self._end_one(max(self._held, key=self._held.__getitem__))

    def _end_one(self, address: str) -> None:
        readings = max(self._reading[address].values(), key=lambda each: sum(reading.size for reading in each))
        oldest = next(iter(readings))
        self._release(oldest)
        oldest.end()

    def _release(self, reading: _Reading) -> None:
        """It holds nothing any more. Once more does nothing."""
        of_address = self._reading.get(reading.address, {})
        of_client = of_address.get(reading.client, {})
        if reading not in of_client:
            return
        del of_client[reading]
        self._held[reading.address] -= reading.size
        if not of_client:
            del of_address[reading.client]
        if not of_address:
            del self._reading[reading.address], self._held[reading.address]


class _Reading:
    """One body that is being read."""

    def __init__(self, address: str, client: str, limit: asyncio.Timeout) -> None:
        self.address, self.client, self.limit = address, client, limit
        self.size, self.ended = 0, False

    def end(self) -> None:
        """Others need its place."""
        self.ended = True
        if not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time())


def _bounded(body: bytes) -> bytes:
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge(f"the body has more than {MAX_BODY_BYTES} bytes")
    return body


def _full() -> Unavailable:
    return Unavailable("too many bodies are being read", "try again shortly")
