"""The validation gate's messages in mode `signed`: what the operator's handler is asked, and what counts as its yes.

Fails closed: `verify_reply` returns a yes, a not-yet, or raises `Refused`; there is nothing else.

The messages themselves: `policies/gate_messages.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from enclave import webhooks
from enclave.errors import CallerError, Refused
from enclave.secret import Secret
from enclave.wire import MAX_GATE_REQUEST_BYTES, GateReply
from policies.gate_messages import (
    ANSWER_TYPE,
    LONGEST_YES_S,
    Answer,
    BatchSignerInfo,
    GateRequest,
    RequestInfo,
    SignerInfo,
    parse_time,
)
from policies.json_strict import JsonInvalid, parse_json
from policies.model import Decoded

RETRIABLE = frozenset({429, 502, 503, 504})


class SecretsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The secrets as `keymoot gate secret` reads them; the older ones only while rotating."""

    request_hmac: str
    answer_hmac: str
    older_request_hmac: str | None = None
    older_answer_hmac: str | None = None

    def __repr__(self) -> str:
        return "SecretsFile(…)"


@dataclass(frozen=True, repr=False)
class GateKeys:
    """One key for each direction, newest first."""

    request: Sequence[Secret]
    answer: Sequence[Secret]


@dataclass(frozen=True)
class GateCall:
    """One signed request to the handler."""

    uid: str
    info: SignerInfo | BatchSignerInfo
    webhook_id: str
    webhook_timestamp: str
    webhook_signature: str
    body: bytes


@dataclass(frozen=True)
class GateAllowed:
    """The verified yes, good until `expires_at_s` (Unix seconds)."""

    expires_at_s: int


class GateSaidNo(Refused):
    """The handler's verified no: final for the request."""

    def __init__(self, reason: str) -> None:
        super().__init__("gate", reason)


@dataclass(frozen=True)
class GatePending:
    """A person decides: ask again after so many seconds."""

    retry_after_s: int


def parse_gate_secrets(data: bytes) -> GateKeys:
    """`{"request_hmac": "whsec_…", "answer_hmac": "whsec_…"}`. Raises `CallerError`, which never quotes them."""
    try:
        parse_json(data)
        file = msgspec.json.decode(data, type=SecretsFile)
    except (JsonInvalid, msgspec.DecodeError):
        raise CallerError('gate secrets must be JSON: {"request_hmac": "whsec_…", "answer_hmac": "whsec_…"}') from None
    request = [webhooks.parse_key(text) for text in (file.request_hmac, file.older_request_hmac) if text]
    answer = [webhooks.parse_key(text) for text in (file.answer_hmac, file.older_answer_hmac) if text]
    # Otherwise a request could be reflected as an answer.
    if {key.reveal() for key in request} & {key.reveal() for key in answer}:
        raise CallerError("the two directions need different secrets")
    return GateKeys(request, answer)


def build_call(
    info: SignerInfo | BatchSignerInfo,
    request_info: RequestInfo,
    *,
    uid: str,
    attempt: int,
    deadline_s: int,
    now_s: int,
    keys: GateKeys,
) -> GateCall:
    """The signed request of attempt `attempt` (from 1). Raises `Refused` where it would exceed the body limit."""
    question = GateRequest.about(info, request_info, uid=uid, attempt=attempt, deadline_s=deadline_s)
    body = msgspec.json.encode(question)
    if len(body) > MAX_GATE_REQUEST_BYTES:
        raise Refused("gate", f"the request is too large for the gate ({len(body)} bytes)")
    return GateCall(uid, info, uid, str(now_s), webhooks.sign(keys.request, uid, now_s, body), body)


def show_decoded(decoded: Decoded | None) -> dict[str, Any] | None:
    """A decoded payload as a handler reads it: bytes as 0x hex, numbers as decimal strings (wei exceed a double)."""
    shown = _show(decoded)
    assert shown is None or isinstance(shown, dict)
    return shown


def is_retriable(status: int) -> bool:
    """Whether an HTTP status says: not now, ask again."""
    return status in RETRIABLE


def verify_reply(reply: GateReply, *, call: GateCall, keys: GateKeys, now_s: int) -> GateAllowed | GatePending:
    """The verified yes, or a not-yet (202). Raises `GateSaidNo` for a verified no, `Refused` for all else."""
    if reply.status == 202:
        return GatePending(reply.retry_after_s)
    if reply.status != 200:
        raise Refused("gate", f"HTTP {reply.status}")
    try:
        webhooks.verify(
            keys.answer, reply.webhook_id, reply.webhook_timestamp, reply.webhook_signature, reply.body, now_s
        )
        parse_json(reply.body)
        answer = msgspec.json.decode(reply.body, type=Answer)
    except webhooks.WebhookInvalid as error:
        raise Refused("gate", f"unsigned answer: {error}") from None
    except (JsonInvalid, msgspec.DecodeError) as error:
        raise Refused("gate", f"malformed answer: {str(error)[:100]}") from None
    _check_echo(answer, call)
    if not answer.allowed:
        said = answer.status.reason or answer.status.message or str(answer.status.code) or "no reason given"
        raise GateSaidNo(said[:300])
    try:
        expires_at_s = parse_time(answer.expiresAt)
    except ValueError:
        raise Refused("gate", "expiresAt is not a UTC time such as 2026-01-01T00:00:00Z") from None
    if expires_at_s <= now_s:
        raise Refused("gate", "the gate's yes has expired already: check both clocks")
    return GateAllowed(min(expires_at_s, now_s + LONGEST_YES_S))


def _check_echo(answer: Answer, call: GateCall) -> None:
    echoes = {
        "type": (answer.type, ANSWER_TYPE),
        "uid": (answer.uid, call.uid),
        "request_digest": (answer.request_digest, call.info.digest()),
        "signer_id": (answer.signer_id, call.info.signer_id),
        "kind": (answer.kind, call.info.kind),
        "dryRun": (answer.dryRun, False),
    }
    for name, (found, expected) in echoes.items():
        if found != expected:
            raise Refused("gate", f"the answer is to something else: {name}")


def _show(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return {name: _show(field) for name, field in msgspec.structs.asdict(value).items()}
    if isinstance(value, tuple):
        return [_show(item) for item in value]
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return value if value is None or isinstance(value, bool) else str(value)
