"""One connection to the enclave: its Unix socket, `Attach` and `Attached`, then messages both ways."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable
from typing import cast

import msgspec

from appliance.signer.errors import LinkDown
from appliance.signer.flow import Outbox
from enclave import wire
from policies.errors import KeymootError

ATTACH_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 1.0
MAX_WAITING_MESSAGES = 4096
MAX_WAITING_BYTES = 64 * 1024 * 1024
AT_ONCE = 256
AT_ONCE_BYTES = 256 * 1024
START_ENCLAVE = "start keymoot enclave, or see its log"


class EnclaveLink(asyncio.Protocol):
    """An attached connection. `serve` hands out each message as it comes; `send` writes, or queues while the enclave
    does not read."""

    attached: wire.Attached

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._first: asyncio.Future[wire.FromEnclave] = asyncio.get_running_loop().create_future()
        self._deliver: Callable[[wire.FromEnclave], None] = self._take_first
        self._paused = False  # what is received waits
        self._choked = False  # what is sent waits
        self._outbox = Outbox("the enclave", MAX_WAITING_MESSAGES, MAX_WAITING_BYTES)
        self._ended, self._closed = asyncio.Event(), asyncio.Event()
        self._why: BaseException | None = None

    @classmethod
    async def connect(cls, path: pathlib.Path, attach: wire.Attach, network: str) -> EnclaveLink:
        """Connect and attach. Raises `LinkDown` where nobody is there or who is there serves another network,
        `Malformed` where the answer is not `Attached`."""
        try:
            _, link = await asyncio.get_running_loop().create_unix_connection(cls, str(path))
        except OSError as error:
            raise LinkDown(f"enclave socket {path}: {error.strerror}", START_ENCLAVE) from error
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT_S):
                link.send("", attach)
                link.attached = _checked(await link._first, network)
        except TimeoutError:
            link._transport.close()
            raise LinkDown("enclave does not answer", START_ENCLAVE) from None
        except BaseException:
            link._transport.close()
            raise
        return link

    def note_setup(self, epoch: int) -> None:
        """The enclave has PRSS seeds of `epoch` now: `attached` says so to coordinators that connect later."""
        self.attached = msgspec.structs.replace(self.attached, prss_epoch=epoch)

    async def serve(self, deliver: Callable[[wire.FromEnclave], None]) -> None:
        """Hand each message to `deliver`, in order. Raises `LinkDown` at the end, `Malformed` for anything but valid
        messages, and what `deliver` raises."""
        self._deliver = deliver
        self.resume()
        try:
            await self._ended.wait()
        finally:
            self.pause()
        if self._why is not None:
            raise self._why

    def pause(self) -> None:
        """Deliver and read nothing until `resume`."""
        self._paused = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on after `pause`."""
        if not self._paused:
            return
        self._paused = False
        self._dispatch()
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def waiting(self) -> int:
        """How many messages wait to be written."""
        return len(self._outbox)

    def send(self, source: str, message: wire.ToEnclave) -> None:
        """Write a message, or queue it on the quota of `source`. Raises `LinkOverflow`; `Malformed` if too large."""
        data = wire.frame(message)
        if self._choked:
            self._outbox.put(source, data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    async def close(self) -> None:
        """Close the socket. What the enclave does not take soon is dropped."""
        self._transport.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._closed.wait()
        except TimeoutError:
            self._transport.abort()
            await self._closed.wait()

    # --- called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As of `Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._transport.set_write_buffer_limits(high=AT_ONCE_BYTES)

    def data_received(self, data: bytes) -> None:
        """As of `Protocol`. At most one message and one read are kept."""
        self._received += data
        self._dispatch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As of `Protocol`."""
        self._end(LinkDown(f"enclave closed{' the connection' if exc is None else f': {exc}'}", START_ENCLAVE))
        self._closed.set()

    def pause_writing(self) -> None:
        """As of `Protocol`."""
        self._choked = True

    def resume_writing(self) -> None:
        """As of `Protocol`."""
        self._choked = False
        while not self._choked and (taken := self._outbox.take(AT_ONCE, AT_ONCE_BYTES)):
            self._transport.write(b"".join([data for _, data in taken]))
            self._outbox.free(taken)

    def _dispatch(self) -> None:
        try:
            while self._received and not self._paused and not self._ended.is_set():
                message = next_message(self._received)
                if message is None:
                    break
                self._deliver(message)
        except KeymootError as error:
            self._end(error)
        except BaseException as error:
            self._end(error)
            raise

    def _take_first(self, message: wire.FromEnclave) -> None:
        self.pause()
        self._first.set_result(message)

    def _end(self, error: BaseException) -> None:
        if not self._first.done():
            self._first.set_exception(error)
        if not self._ended.is_set():
            self._why = error
            self._ended.set()


def next_message(received: bytearray) -> wire.FromEnclave | None:
    """Take the next message off `received`; None where it has not come whole. Raises `Malformed`."""
    length = int.from_bytes(received[: wire.LENGTH_BYTES], "big")
    if len(received) < wire.LENGTH_BYTES:
        return None
    if not 0 < length <= wire.MAX_MESSAGE_BYTES:
        raise wire.Malformed(f"the enclave announced a message of {length} bytes")
    end = wire.LENGTH_BYTES + length
    if len(received) < end:
        return None
    data = bytes(received[wire.LENGTH_BYTES : end])
    del received[:end]
    message: wire.FromEnclave = wire.decode(data, wire.FromEnclave)  # type: ignore[arg-type]
    return message


def _checked(message: wire.FromEnclave, network: str) -> wire.Attached:
    if not isinstance(message, wire.Attached):
        raise wire.Malformed(f"the enclave's first message is {type(message).__name__}, not Attached")
    if message.protocol != wire.PROTOCOL_VERSION:
        raise LinkDown(
            f"enclave speaks protocol {message.protocol}, this signer {wire.PROTOCOL_VERSION}",
            "install the same version of both",
        )
    if message.network != network:
        raise LinkDown(
            f"enclave belongs to network {message.network}, this signer to {network}",
            "point enclave_socket at the enclave of this network",
        )
    return message
