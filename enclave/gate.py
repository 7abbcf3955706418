"""The validation gate's messages (SPEC 6): what the operator's handler is asked, and what counts as its yes.

Fails closed: `verify_reply` and `judge_status` return a yes, a not-yet, or raise `Refused`; there is nothing else. What
the messages say is in `policies/gate_messages.py`, the keys are in `gate_keys.py`.
"""

from __future__ import annotations

import msgspec

from enclave import webhooks
from enclave.errors import Refused
from enclave.gate_keys import GateKeys
from enclave.wire import MAX_GATE_REQUEST_BYTES, GateReply, GateUnreachable
from policies.gate_messages import ANSWER_TYPE, LONGEST_YES_S, Answer, GateInfo, GateRequest, RequestInfo, parse_time
from policies.json_strict import JsonInvalid, parse_as

RETRIABLE = frozenset({429, 502, 503, 504})
STATUS_YES_S = 60
"""So long a yes of mode `status` counts: nothing in it says how long."""

# SPEC 6.7. By the signer's word for why there is no answer: the rule that the request is refused by in the end, and
# whether another try may help.
NO_ANSWER: dict[str, tuple[str, bool]] = {
    "connect": ("gate/unreachable", True),
    "tls": ("gate/tls", True),
    "timeout": ("gate/timeout", True),
    "busy": ("gate/busy", True),
    "redirect": ("gate/redirect", False),
    "too-large": ("gate/too-large", False),
    "http": ("gate/http", False),
    "not-configured": ("gate/not-configured", False),
    "no-mtls": ("gate/no-mtls", False),
}
ECHOED = ("type", "uid", "request_digest", "signer_id", "kind", "dryRun")
# SPEC 6.5, by `WebhookInvalid.code`.
UNSIGNED = {"unsigned": "gate/unsigned", "stale": "gate/stale", "signature": "gate/signature"}


class GateCall(msgspec.Struct, frozen=True):
    """One request to the handler. `webhook_signature` is empty where none is asked for (mode `status`)."""

    uid: str
    info: GateInfo
    request_digest: str
    webhook_id: str
    webhook_timestamp: str
    webhook_signature: str
    body: bytes
    dry_run: bool = False


class GateAllowed(msgspec.Struct, frozen=True):
    """The verified yes, good until `expires_at_s` (Unix seconds)."""

    expires_at_s: int


class GateSaidNo(Refused):
    """The handler's verified no: final for the request."""

    def __init__(self, reason: str) -> None:
        super().__init__("gate", reason)


class GatePending(msgspec.Struct, frozen=True):
    """A person decides: ask again after so many seconds."""

    retry_after_s: int


def build_call(
    info: GateInfo,
    request_info: RequestInfo,
    *,
    uid: str,
    attempt: int,
    deadline_s: int,
    now_s: int,
    keys: GateKeys,
    dry_run: bool = False,
) -> GateCall:
    """The signed request of attempt `attempt` (from 1). Raises `Refused` where it would exceed the body limit."""
    # SPEC 6.2
    question = GateRequest.about(info, request_info, uid=uid, attempt=attempt, deadline_s=deadline_s, dry_run=dry_run)
    body = msgspec.json.encode(question)
    if len(body) > MAX_GATE_REQUEST_BYTES:
        raise Refused("gate/request-too-large", f"the request is too large for the gate ({len(body)} bytes)")
    # SPEC 6.3
    signature = webhooks.sign(keys.request, uid, now_s, body)
    return GateCall(uid, info, question.signerInfo["request_digest"], uid, str(now_s), signature, body, dry_run)


def is_retriable(status: int) -> bool:
    """Whether an HTTP status says: not now, ask again."""
    return status in RETRIABLE


def no_answer(answer: GateUnreachable) -> Refused | None:
    """The refusal that follows at once where there is no answer; None where another try may bring one."""
    rule, again = NO_ANSWER[answer.code]
    return None if again else Refused(rule, f"no answer from the gate: {answer.reason}")


def verify_reply(reply: GateReply, *, call: GateCall, keys: GateKeys, now_s: int) -> GateAllowed | GatePending:
    """Mode `signed`: the verified yes, or a not-yet (202). Raises `GateSaidNo` for a verified no, `Refused` for all
    else."""
    # SPEC 6.6
    if reply.status == 202:
        return GatePending(reply.retry_after_s)
    if reply.status != 200:
        raise Refused("gate/status", f"HTTP {reply.status}")
    # SPEC 6.5
    try:
        webhooks.verify(
            keys.answer, reply.webhook_id, reply.webhook_timestamp, reply.webhook_signature, reply.body, now_s
        )
        answer = parse_as(reply.body, Answer)
    except webhooks.WebhookInvalid as error:
        raise Refused(UNSIGNED[error.code], f"unsigned answer: {error}") from None
    except (JsonInvalid, msgspec.DecodeError) as error:
        raise Refused("gate/malformed", f"malformed answer: {str(error)[:100]}") from None
    _check_echo(answer, call)
    if not answer.allowed:
        said = answer.status.reason or answer.status.message or str(answer.status.code) or "no reason given"
        raise GateSaidNo(said[:300])
    try:
        expires_at_s = parse_time(answer.expiresAt)
    except ValueError:
        raise Refused("gate/malformed", "expiresAt is not a UTC time such as 2026-01-01T00:00:00Z") from None
    if expires_at_s <= now_s:
        raise Refused("gate/expired", "the gate's yes has expired already: check both clocks")
    return GateAllowed(min(expires_at_s, now_s + LONGEST_YES_S))


def judge_status(reply: GateReply, *, now_s: int) -> GateAllowed:
    """Mode `status`: 200 is a yes, whatever else comes with it. Nothing shows that the handler said it, so whoever has
    taken the signer process over can say it too. Raises `GateSaidNo` for 403, `Refused` for all else."""
    # SPEC 6.8
    if reply.status == 200:
        return GateAllowed(now_s + STATUS_YES_S)
    if reply.status == 403:
        raise GateSaidNo("HTTP 403")
    raise Refused("gate/status", f"HTTP {reply.status}")


def _check_echo(answer: Answer, call: GateCall) -> None:
    found = (answer.type, answer.uid, answer.request_digest, answer.signer_id, answer.kind, answer.dryRun)
    expected = (ANSWER_TYPE, call.uid, call.request_digest, call.info.signer_id, call.info.kind, call.dry_run)
    if found != expected:
        name = next(name for name, one, other in zip(ECHOED, found, expected, strict=True) if one != other)
        raise Refused("gate/echo", f"the answer is to something else: {name}")
