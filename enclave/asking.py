"""Asking the operator's gate: one conversation for one request, until it says yes, no, or the deadline passes.

The signer does single HTTP exchanges; attempts, polls of a pending answer, and every judgement are here. Whatever is
not a verified yes is a refusal (SPEC 6.1 to 6.8).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from enclave.errors import Refused
from enclave.gate import (
    NO_ANSWER,
    GateAllowed,
    GateCall,
    GatePending,
    GateSaidNo,
    build_call,
    is_retriable,
    judge_status,
    no_answer,
    verify_reply,
)
from enclave.gate_keys import GateKeys
from enclave.meters import Durations
from enclave.tasks import Promise, Timers
from enclave.wire import CallGate, GateReply, GateUnreachable
from policies.gate_messages import GateInfo, RequestInfo

TRY_TIMEOUT_S = 10.0
RETRY_FIRST_S, RETRY_MOST_S = 0.25, 5.0
POLL_LEAST_S, POLL_MOST_S = 1.0, 300.0
MAX_CONVERSATIONS = 1024
# Those of one client: a gate that takes its time over its requests is there for others'.
MAX_CONVERSATIONS_OF_CLIENT = MAX_CONVERSATIONS // 2


class _NoDecision(Refused):
    """The deadline has passed without a yes or a no."""


class Gate:
    """All conversations under way. `mode`: `signed`, `status` or `none`. `keys()`: the gate's keys, None in mode `none`
    and before the HSM unsealed them; asked for anew at each try, since they may have been replaced meanwhile."""

    def __init__(
        self,
        mode: str,
        keys: Callable[[], GateKeys | None],
        timers: Timers,
        wall_clock: Callable[[], float],
        random: Callable[[int], bytes],
        emit: Callable[[CallGate], None],
    ) -> None:
        self.mode, self._keys, self._timers = mode, keys, timers
        self._clock, self._random, self._emit = wall_clock, random, emit
        # What each exchange resolves; what ends its timer; when it began, in ns.
        self._awaited: dict[str, tuple[Promise[GateReply | GateUnreachable], Callable[[], None], int]] = {}
        self.under_way = 0
        """Conversations."""
        self._of_client: dict[str, int] = {}
        self.counters: dict[str, int] = {}
        self.seconds = Durations()
        """Whole conversations."""
        self.timed: Callable[[float], None] = lambda _: None
        """Told how long each exchange took, one without an answer too."""

    async def ask(
        self,
        info: GateInfo,
        request: RequestInfo,
        deadline_s: int,
        pending: Callable[[int], None],
        request_id: str = "",
    ) -> GateAllowed:
        """A yes, or `Refused`. `pending(deadline_s)` is called whenever the gate says that it needs time.

        `request_id`: what logs call the request; the handler gets it too.
        """
        client_id = request.requester
        self._of_client[client_id] = self._check_room(client_id) + 1
        self.under_way += 1
        started_ns = time.perf_counter_ns()
        try:
            allowed = await self._converse(info, request, deadline_s, pending, request_id)
        except GateSaidNo:
            self._count("gate|refused")
            raise
        except _NoDecision:
            self._count("gate|undecided")
            raise
        except Refused:
            self._count("gate|invalid")
            raise
        finally:
            self.under_way -= 1
            self._of_client[client_id] -= 1
            if not self._of_client[client_id]:
                del self._of_client[client_id]
            self.seconds.observe_ns(time.perf_counter_ns() - started_ns)
        self._count("gate|allowed")
        return allowed

    def _check_room(self, client_id: str) -> int:
        """How many conversations are under way for the client. Raises `Refused` where there is room for no more."""
        if self.under_way >= MAX_CONVERSATIONS:
            raise Refused("gate/busy", f"{MAX_CONVERSATIONS} gate calls are under way")
        of_client = self._of_client.get(client_id, 0)
        if of_client >= MAX_CONVERSATIONS_OF_CLIENT:
            raise Refused("gate/busy", f"{MAX_CONVERSATIONS_OF_CLIENT} gate calls for {client_id} are under way")
        return of_client

    def on_answer(self, answer: GateReply | GateUnreachable) -> None:
        """What the signer brought back. One that nobody awaits is dropped."""
        awaited = self._awaited.pop(answer.uid, None)
        if awaited is None:
            self._count("gate_tries|late")
            return
        promise, cancel, started_ns = awaited
        cancel()
        self.timed((time.perf_counter_ns() - started_ns) / 1e9)
        promise.resolve(answer)

    async def _converse(
        self,
        info: GateInfo,
        request: RequestInfo,
        deadline_s: int,
        pending: Callable[[int], None],
        request_id: str,
    ) -> GateAllowed:
        # SPEC 6.1: for this conversation alone.
        uid = self._random(16).hex()
        attempt, backoff_s, rule, reason = 0, RETRY_FIRST_S, "gate/unreachable", "no answer"
        while (now_s := self._clock()) < deadline_s:
            attempt += 1
            call = build_call(
                info,
                request,
                uid=uid,
                attempt=attempt,
                deadline_s=deadline_s,
                now_s=int(now_s),
                keys=self._present_keys(),
            )
            timeout_ms = max(1, int(min(TRY_TIMEOUT_S, deadline_s - now_s) * 1000))
            answer = await self._exchange(call, timeout_ms, request_id)
            if isinstance(answer, GateUnreachable):
                (rule, _), reason, wait_s = NO_ANSWER[answer.code], answer.reason, backoff_s
                self._count("gate_tries|unreachable")
                if refusal := no_answer(answer):
                    raise refusal
            elif is_retriable(answer.status):
                # SPEC 6.7
                rule, reason = "gate/status", f"HTTP {answer.status}"
                wait_s = min(max(backoff_s, float(answer.retry_after_s)), POLL_MOST_S)
                self._count("gate_tries|retriable")
            else:
                verdict = self._judge(answer, call)
                if isinstance(verdict, GateAllowed):
                    return verdict
                self._count("gate_tries|pending")
                pending(deadline_s)
                rule, reason = "gate/undecided", "undecided"
                wait_s = min(max(float(verdict.retry_after_s), POLL_LEAST_S), POLL_MOST_S)
            backoff_s = min(backoff_s * 2, RETRY_MOST_S)
            await self._timers.sleep(min(wait_s, max(0.0, deadline_s - self._clock())))
        raise _NoDecision(rule, f"no yes from the gate before the deadline ({reason})")

    def _present_keys(self) -> GateKeys:
        keys = self._keys()
        if keys is None:
            raise Refused("gate/secrets", "this enclave has no gate secrets: run `keymoot gate secret`")
        return keys

    def _judge(self, answer: GateReply, call: GateCall) -> GateAllowed | GatePending:
        now_s = int(self._clock())
        if self.mode == "status":
            return judge_status(answer, now_s=now_s)
        # Those of now: an answer may come after its key was retired.
        return verify_reply(answer, call=call, keys=self._present_keys(), now_s=now_s)

    def _exchange(self, call: GateCall, timeout_ms: int, request_id: str) -> Promise[GateReply | GateUnreachable]:
        """What `on_answer` resolves: in the end there is always an answer, if only that there is none."""
        uid = call.uid
        promise: Promise[GateReply | GateUnreachable] = Promise()
        told = "no answer from the signer process in time"
        cancel = self._timers.after(
            timeout_ms / 1000 + 1.0, lambda: self.on_answer(GateUnreachable(uid, told, "timeout"))
        )
        self._awaited[uid] = (promise, cancel, time.perf_counter_ns())
        signed = (call.webhook_id, call.webhook_timestamp, call.webhook_signature, call.body)
        self._emit(CallGate(uid, *signed, timeout_ms, request_id))
        return promise

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1
