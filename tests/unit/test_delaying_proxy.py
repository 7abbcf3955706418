"""What the proxy of `bench wan` does: everything arrives, in order, not before its time."""

from __future__ import annotations

import asyncio
import time

from appliance.localnet.delay import DelayingProxy
from appliance.localnet.files import LOOPBACK, free_ports

DELAY_S = 0.05
PIECES = [bytes([number]) * 100_000 for number in range(20)]


async def test_what_passes_is_late_and_whole() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    port, target = free_ports(2)
    server = await asyncio.start_server(echo, LOOPBACK, target)
    with DelayingProxy(LOOPBACK, port, target, DELAY_S):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        started_s = time.monotonic()
        sending = asyncio.create_task(_send(writer))
        first = await reader.readexactly(1)
        assert time.monotonic() - started_s >= 2 * DELAY_S
        rest = await reader.readexactly(sum(map(len, PIECES)) - 1)
        await sending
        writer.write_eof()
        assert await reader.read() == b""
    server.close()
    assert first + rest == b"".join(PIECES)


async def test_nobody_behind_it_ends_the_connection() -> None:
    port, target = free_ports(2)
    with DelayingProxy(LOOPBACK, port, target, DELAY_S):
        reader, _ = await asyncio.open_connection(LOOPBACK, port)
        assert await reader.read() == b""


async def _send(writer: asyncio.StreamWriter) -> None:
    for piece in PIECES:
        writer.write(piece)
        await writer.drain()
