"""The gate calls that an enclave has asked for: queued, carried some at a time, each answered in time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NoReturn

import structlog

from appliance.signer.gate_caller import MAX_CONNECTIONS, GateCaller, unreachable
from appliance.signer.metrics import SignerMetrics
from enclave import wire
from policies.repeats import Repeats

MAX_WAITING = 256
AT_ONCE = MAX_CONNECTIONS

log = structlog.get_logger()


class GateCalls:
    """`put` queues a call; `work` is run `AT_ONCE` times and carries them. `answer` gets every answer."""

    def __init__(
        self,
        gate: GateCaller | None,
        answer: Callable[[wire.GateReply | wire.GateUnreachable], None],
        metrics: SignerMetrics,
        repeats: Repeats,
        needs_mtls: bool = False,
    ) -> None:
        """`needs_mtls`: the enclave's gate mode is `status`, so the handler must know that we ask."""
        self._needs_mtls = needs_mtls
        self._gate, self._answer, self._metrics, self._repeats = gate, answer, metrics, repeats
        self._waiting: deque[tuple[wire.CallGate, float]] = deque()
        # Workers that wait for a call: whoever came last is woken first, so that few connections are kept in use.
        self._idle: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, call: wire.CallGate) -> None:
        """Queue a call; one too many is answered at once, as unreachable."""
        if len(self._waiting) >= MAX_WAITING:
            self._answer(unreachable(call, f"more than {MAX_WAITING} gate calls are waiting", "busy"))
            return
        self._waiting.append((call, asyncio.get_running_loop().time() + call.timeout_ms / 1000))
        while self._idle:
            worker = self._idle.pop()
            if not worker.done():
                worker.set_result(None)
                break

    async def work(self) -> NoReturn:
        """One of the workers; time spent waiting for a worker counts."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                idle = loop.create_future()
                self._idle.append(idle)
                await idle
            call, deadline_s = self._waiting.popleft()
            timeout_s = deadline_s - loop.time()
            if self._gate is None:
                answer: wire.GateReply | wire.GateUnreachable = unreachable(
                    call, "signer.yaml names no gate: set gate.url and gate.ca", "not-configured"
                )
            elif self._needs_mtls and not self._gate.mutual:
                answer = unreachable(
                    call, "gate mode status needs mutual TLS: set gate.certificate and gate.key", "no-mtls"
                )
            elif timeout_s <= 0:
                answer = unreachable(call, "all gate connections were busy until the time-out", "busy")
            else:
                started_s = loop.time()
                answer = await self._gate.call(call, timeout_s)
                self._metrics.gate_answered(answer, loop.time() - started_s)
            self._metrics.gate_reason = answer.reason if isinstance(answer, wire.GateUnreachable) else ""
            self._log(call, answer)
            self._answer(answer)

    def _log(self, call: wire.CallGate, answer: wire.GateReply | wire.GateUnreachable) -> None:
        """Every answer; that there is none once, and again when the reason changes."""
        if isinstance(answer, wire.GateReply):
            if self._repeats.over("gate"):
                log.info("gate-reachable")
            log.info("gate-answered", request_id=call.request_id, uid=call.uid, status=answer.status)
            return
        before = self._repeats.due("gate", answer.reason)
        if before is not None:
            facts = {"request_id": call.request_id, "uid": call.uid, "before": before}
            log.warning("gate-unreachable", reason=answer.reason, **facts)
