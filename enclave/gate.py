"""The validation gate's messages in mode `signed`: what the operator's handler is asked, and what counts as its yes.

Fails closed: `verify_reply` returns a yes, a not-yet, or raises `Refused`; there is nothing else.

`request_digest` is `H(gate-signer-info, J)`, where `J` is the JSON encoding of `signerInfo` without `request_digest`
itself, keys sorted, no white space, UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from enclave import webhooks
from enclave.errors import CallerError, Refused
from enclave.secret import Secret
from enclave.wire import MAX_GATE_REQUEST_BYTES, GateReply
from policies.json_strict import JsonInvalid, parse_json
from policies.model import Decoded
from policies.transcript import Tag, digest

VERSION = "1"
REQUEST_TYPE: Literal["validation.request"] = "validation.request"
ANSWER_TYPE: Literal["validation.answer"] = "validation.answer"
RETRIABLE = frozenset({429, 502, 503, 504})
LONGEST_YES_S = 24 * 3600
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")

_sorted_json = msgspec.json.Encoder(order="sorted")


class SignerInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the enclave itself knows or derived. Points and hashes in hex; `blind`: the client sent a bare hash."""

    kind: str
    key_id: str
    public_key: str
    tx_hash: str
    derivation_path: tuple[int, ...]
    child_public_key: str
    signer_id: str
    scheme: str
    curve: str
    key_epoch: int
    participants: tuple[int, ...]
    blind: bool

    def digest(self) -> str:
        """`request_digest`, 64 hex digits: see the module's docstring."""
        return digest(Tag.GATE_REQUEST, _sorted_json.encode(self)).hex()


class BatchItemInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One hash of a batch, the path and public key that it is signed with."""

    tx_hash: str
    derivation_path: tuple[int, ...]
    child_public_key: str


class BatchSignerInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the enclave knows of a batch. It names every hash, and there is no `tx_hash` for all of them, so that a
    handler that knows single signatures only does not say yes by mistake."""

    kind: str
    key_id: str
    public_key: str
    items: tuple[BatchItemInfo, ...]
    signer_id: str
    scheme: str
    curve: str
    key_epoch: int
    participants: tuple[int, ...]
    blind: bool

    def digest(self) -> str:
        """`request_digest`, as `SignerInfo.digest`."""
        return digest(Tag.GATE_REQUEST, _sorted_json.encode(self)).hex()


class RequestInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What the client says, re-encoded from what the enclave parsed."""

    requester: str
    external_id: str
    network: str
    payload: dict[str, Any]
    decoded: dict[str, Any] | None
    untrusted: bool = True


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why, in the operator's words."""

    code: str | int = ""
    reason: str = ""
    message: str = ""


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The handler's answer; `uid`, `request_digest`, `signer_id`, `kind` and `dryRun` echo the request."""

    type: str
    uid: str
    request_digest: str
    signer_id: str
    kind: str
    dryRun: bool
    allowed: bool
    status: Verdict = Verdict()
    expiresAt: str = ""


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
    message = {
        "version": VERSION,
        "type": REQUEST_TYPE,
        "uid": uid,
        "attempt": attempt,
        "deadline": datetime.fromtimestamp(deadline_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "dryRun": False,
        "signerInfo": {**msgspec.to_builtins(info), "request_digest": info.digest()},
        "requestInfo": msgspec.to_builtins(request_info),
    }
    body = msgspec.json.encode(message)
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
    expires_at_s = _parse_time(answer.expiresAt)
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


def _parse_time(text: str) -> int:
    if not _TIME.fullmatch(text):
        raise Refused("gate", "expiresAt is not a UTC time such as 2026-01-01T00:00:00Z")
    try:
        return int(datetime.fromisoformat(text[:19] + "+00:00").timestamp())
    except ValueError:
        raise Refused("gate", "expiresAt is no time") from None


def _show(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return {name: _show(field) for name, field in msgspec.structs.asdict(value).items()}
    if isinstance(value, tuple):
        return [_show(item) for item in value]
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return value if value is None or isinstance(value, bool) else str(value)
