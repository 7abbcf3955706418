"""A TCP proxy that holds back everything for a fixed time: distance between the processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType

from appliance import eventloop

PIECE_BYTES = 256 * 1024
MAX_HELD_PIECES = 4096
STOP_TIMEOUT_S = 10.0


class DelayingProxy:
    """Listens on `port` of `host` and passes on to `target_port`, each way `delay_s` later. A context manager with a
    thread of its own."""

    def __init__(self, host: str, port: int, target_port: int, delay_s: float) -> None:
        self._host, self._port, self._target_port, self._delay_s = host, port, target_port, delay_s
        self._listening = threading.Event()
        self._stopped: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: eventloop.run(self._serve()), name="delay", daemon=True)

    def __enter__(self) -> DelayingProxy:
        self._thread.start()
        self._listening.wait(STOP_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._stopped is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(STOP_TIMEOUT_S)

    async def _serve(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        passing: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._pass_on(reader, writer))
            passing.add(task)
            task.add_done_callback(passing.discard)

        server = await asyncio.start_server(connected, self._host, self._port, limit=PIECE_BYTES)
        self._listening.set()
        await self._stopped.wait()
        server.close()
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._target_port, limit=PIECE_BYTES)
        except OSError:
            writer.close()
            return
        ways = [self._carry(reader, far_writer), self._carry(far_reader, writer)]
        with contextlib.suppress(OSError):
            await asyncio.gather(*ways)
        writer.close()
        far_writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One way. What is held back is bounded: then it reads no more."""
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_HELD_PIECES)
        loop = asyncio.get_running_loop()

        async def release() -> None:
            while True:
                due_s, piece = await held.get()
                await asyncio.sleep(due_s - loop.time())
                if not piece:
                    writer.close()
                    return
                writer.write(piece)
                await writer.drain()

        releasing = asyncio.create_task(release())
        try:
            while piece := await reader.read(PIECE_BYTES):
                await held.put((loop.time() + self._delay_s, piece))
            await held.put((loop.time() + self._delay_s, b""))
            await releasing
        finally:
            releasing.cancel()
