"""One connection to the enclave: its Unix socket, `Attach` and `Attached`, then messages both ways."""

from __future__ import annotations

import asyncio
import pathlib
from typing import NoReturn

import msgspec

from appliance.signer.errors import LinkDown
from appliance.signer.flow import Outbox
from enclave import wire

ATTACH_TIMEOUT_S = 30.0
MAX_WAITING_MESSAGES = 4096
MAX_WAITING_BYTES = 64 * 1024 * 1024
AT_ONCE = 256
AT_ONCE_BYTES = 256 * 1024
START_ENCLAVE = "start keymoot enclave, or see its log"


# uvloop raises RuntimeError where a connection was closed under a writer.
CLOSED = (OSError, RuntimeError)


class EnclaveLink:
    """An attached connection. `send` queues, `write` empties the queue, `receive` reads one message."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, attached: wire.Attached) -> None:
        self.attached = attached
        self._reader = reader
        self._writer = writer
        self._received = bytearray()
        self._outbox = Outbox("the enclave", MAX_WAITING_MESSAGES, MAX_WAITING_BYTES)

    @classmethod
    async def connect(cls, path: pathlib.Path, attach: wire.Attach, network: str) -> EnclaveLink:
        """Connect and attach. Raises `LinkDown` where nobody is there or who is there serves another network,
        `Malformed` where the answer is not `Attached`."""
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError as error:
            raise LinkDown(f"enclave socket {path}: {error.strerror}", START_ENCLAVE) from error
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT_S):
                writer.write(wire.frame(attach))
                await writer.drain()
                received = bytearray()
                attached = await _read(reader, received)
            link = cls(reader, writer, _checked(attached, network))
            link._received = received
            return link
        except TimeoutError:
            writer.close()
            raise LinkDown("enclave does not answer", START_ENCLAVE) from None
        except CLOSED as error:
            writer.close()
            raise LinkDown(f"enclave closed: {error}", START_ENCLAVE) from error
        except BaseException:
            writer.close()
            raise

    def note_setup(self, epoch: int) -> None:
        """The enclave has PRSS seeds of `epoch` now: `attached` says so to coordinators that connect later."""
        self.attached = msgspec.structs.replace(self.attached, prss_epoch=epoch)

    @property
    def waiting(self) -> int:
        """How many messages wait to be written."""
        return len(self._outbox)

    def send(self, source: str, message: wire.ToEnclave) -> None:
        """Queue a message on the quota of `source`. Raises `LinkOverflow`; `Malformed` if too large."""
        self._outbox.put(source, wire.frame(message))

    async def write(self) -> NoReturn:
        """Write what `send` queued. Raises `LinkDown` when the enclave is gone."""
        await self._outbox.drain(self._write, b"".join, at_once=AT_ONCE, at_once_bytes=AT_ONCE_BYTES)

    async def receive(self) -> wire.FromEnclave:
        """The next message. Raises `LinkDown` at the end, `Malformed` for anything but one valid message."""
        return await _read(self._reader, self._received)

    async def close(self) -> None:
        """Close the socket."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except CLOSED:
            return  # it was broken already, which is why it is being closed

    async def _write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except CLOSED as error:
            raise LinkDown(f"enclave closed: {error}", START_ENCLAVE) from error


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


async def _read(reader: asyncio.StreamReader, received: bytearray) -> wire.FromEnclave:
    """The next message; `received` keeps what came behind it."""
    await _receive(reader, received, wire.LENGTH_BYTES)
    length = int.from_bytes(received[: wire.LENGTH_BYTES], "big")
    if not 0 < length <= wire.MAX_MESSAGE_BYTES:
        raise wire.Malformed(f"the enclave announced a message of {length} bytes")
    end = wire.LENGTH_BYTES + length
    await _receive(reader, received, end)
    data = bytes(received[wire.LENGTH_BYTES : end])
    del received[:end]
    message: wire.FromEnclave = wire.decode(data, wire.FromEnclave)  # type: ignore[arg-type]
    return message


async def _receive(reader: asyncio.StreamReader, received: bytearray, wanted: int) -> None:
    """Read until `received` holds `wanted` bytes. Raises `LinkDown` at the end."""
    while len(received) < wanted:
        try:
            piece = await reader.read(AT_ONCE_BYTES)
        except OSError as error:
            raise LinkDown(f"enclave closed: {error}", START_ENCLAVE) from error
        if not piece:
            raise LinkDown("enclave closed the connection", START_ENCLAVE)
        received += piece
