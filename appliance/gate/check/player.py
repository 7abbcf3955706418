"""The signer that is played: real questions over the signer's own HTTP code, and raw connections for bad manners."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from appliance.gate.check.judge import Judged, judge
from appliance.gate.check.keys import Key, Keys
from appliance.gate.check.questions import DEADLINE_S, Parts, Question, question
from appliance.signer.config import GateSettings
from appliance.signer.gate_caller import GateCaller
from appliance.tls import client_context
from enclave.wire import CallGate

MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Settings:
    """What is checked, and how. `keys` None: mode `status`. `allowed`, `refused`: what the handler should say to.
    `real`: ask one question that is no dry run."""

    gate: GateSettings
    keys: Keys | None
    timeout_s: float
    allowed: Parts | None = None
    refused: Parts | None = None
    real: bool = False


@dataclass
class Player:
    """One run. `latencies_s`: of the questions that were answered well. `answered`: whether any was, with anything."""

    settings: Settings
    caller: GateCaller
    clock: Callable[[], float]
    random: Callable[[int], bytes]
    latencies_s: list[float] = field(default_factory=list)
    answered: bool = False

    @property
    def signed(self) -> bool:
        """Whether in mode `signed`."""
        return self.settings.keys is not None

    @property
    def asks(self) -> tuple[Key, ...]:
        """What signs questions."""
        return () if self.settings.keys is None else self.settings.keys.asks

    @property
    def now_s(self) -> int:
        """Unix seconds."""
        return int(self.clock())

    def question(
        self, *, dry_run: bool = True, uid: str | None = None, parts: Parts | None = None, **changes: Any
    ) -> Question:
        """One with a new uid, that should be allowed where we know what is."""
        parts = parts or self.settings.allowed
        uid = uid or self.random(16).hex()
        return question(uid, self.now_s + DEADLINE_S, dry_run=dry_run, parts=parts, **changes)

    async def ask(self, asked: Question | None = None, *, late_s: int = 0, **signed: Any) -> Judged:
        """What came of one question, by default a good one. `late_s`: its signature is so old; `signed`: see
        `Question.call`."""
        asked = asked or self.question()
        keys = signed.pop("keys", self.asks)
        call = asked.call(keys, self.now_s - late_s, self.settings.timeout_s, **signed)
        started_s = time.perf_counter()
        reply = await self.caller.call(call, self.settings.timeout_s)
        took_s = time.perf_counter() - started_s
        judged = judge(reply, asked, self.settings.keys, self.now_s)
        self.answered |= judged.status != 0
        if not judged.faults:
            self.latencies_s.append(took_s)
        return judged

    @asynccontextmanager
    async def raw(self, *, certificate: bool = True) -> AsyncIterator[RawConnection]:
        """A connection on which anything can be sent. Raises `OSError`, `TimeoutError`."""
        gate = self.settings.gate
        url = urlsplit(gate.url)
        files = (gate.certificate, gate.key) if certificate else (None, None)
        context = client_context(gate.ca, *files, ssl.TLSVersion.TLSv1_2)
        host, port = url.hostname or "", url.port or 443
        async with asyncio.timeout(self.settings.timeout_s):
            reader, writer = await asyncio.open_connection(host, port, ssl=context, limit=MAX_HEAD_BYTES)
        try:
            yield RawConnection(reader, writer, url.netloc, url.path or "/", self.settings.timeout_s)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@dataclass
class RawConnection:
    """Bytes to and from the handler."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    host: str
    path: str
    timeout_s: float

    def head(self, length: int, call: CallGate | None = None) -> bytes:
        """The head of a POST of `length` bytes, with the webhook headers of `call`."""
        lines = [f"POST {self.path} HTTP/1.1", f"host: {self.host}", "content-type: application/json"]
        lines += [f"content-length: {length}", "user-agent: keymoot"]
        if call is not None:
            lines += [f"webhook-id: {call.webhook_id}", f"webhook-timestamp: {call.webhook_timestamp}"]
            lines += [f"webhook-signature: {call.webhook_signature}"]
        return "\r\n".join([*lines, "", ""]).encode()

    async def send(self, data: bytes) -> None:
        """Raises `OSError` where the handler has closed, `TimeoutError` where it does not read."""
        self.writer.write(data)
        async with asyncio.timeout(self.timeout_s):
            await self.writer.drain()

    async def status(self) -> int:
        """The status of the answer; 0 where there is none. Raises `OSError`, `TimeoutError`."""
        async with asyncio.timeout(self.timeout_s):
            line = await self.reader.readline()
        parts = line.split(b" ")
        return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
