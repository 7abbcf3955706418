"""What the validation gate is asked and what it answers: the one definition of both messages.

The enclave builds and judges them, the command line checks handlers with them, and the gate's OpenAPI document is made
from them. `request_digest` is `H(gate-signer-info, J)`, where `J` is the JSON encoding of `signerInfo` without
`request_digest` itself, keys sorted, no white space, UTF-8.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

import msgspec

from policies.decoded import Decoded, EthereumDecoded
from policies.erc20 import decode_call
from policies.transcript import Tag, digest

VERSION = "1"
REQUEST_TYPE: Literal["validation.request"] = "validation.request"
ANSWER_TYPE: Literal["validation.answer"] = "validation.answer"
LONGEST_YES_S = 24 * 3600
# All that is asked and answered within a second or two names the same times.
TIMES_CACHED = 16
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)

_sorted_json = msgspec.json.Encoder(order="sorted")


class _Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an enclave itself says in a question."""

    def digest(self) -> str:
        """`request_digest`, 64 hex digits: see the module's docstring."""
        return digest(Tag.GATE_REQUEST, _sorted_json.encode(self)).hex()


class SignerInfo(_Known, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the enclave itself knows or derived. Points and hashes in hex; `blind`: the client sent a bare hash.
    `anomalies`: what is out of the ordinary, where a rule of the policy asks for it; left out where nothing is."""

    kind: Literal["Signing"]
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
    anomalies: tuple[str, ...] = ()


class BatchItemInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One hash of a batch, the path and public key that it is signed with."""

    tx_hash: str
    derivation_path: tuple[int, ...]
    child_public_key: str


class BatchSignerInfo(_Known, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the enclave knows of a batch. It names every hash, and there is no `tx_hash` for all of them, so that a
    handler that knows single signatures only does not say yes by mistake. `anomalies` as in `SignerInfo`."""

    kind: Literal["SigningBatch"]
    key_id: str
    public_key: str
    items: tuple[BatchItemInfo, ...]
    signer_id: str
    scheme: str
    curve: str
    key_epoch: int
    participants: tuple[int, ...]
    blind: bool
    anomalies: tuple[str, ...] = ()


class KeyCreationInfo(_Known, frozen=True, forbid_unknown_fields=True):
    """A new key, made by all signers. `label`: the one that it will have for ever; `tolerate`: how many of the
    `participants` may be corrupted."""

    label: str
    signer_id: str
    scheme: str
    curve: str
    key_epoch: int
    participants: tuple[int, ...]
    tolerate: int
    roster_digest: str
    kind: Literal["KeyCreation"] = "KeyCreation"


class RefreshInfo(_Known, frozen=True, forbid_unknown_fields=True):
    """New shares of every key, for the same signers. `key_epoch`: the one that begins. Not asked yet: this version has
    no such step."""

    signer_id: str
    scheme: str
    key_epoch: int
    old_key_epoch: int
    participants: tuple[int, ...]
    tolerate: int
    roster_digest: str
    kind: Literal["Refresh"] = "Refresh"


class ReshareInfo(_Known, frozen=True, forbid_unknown_fields=True):
    """New shares of every key, for the signers of another roster. `…_fingerprints`: of the signers' identity keys, in
    the order of their indices. Not asked yet: this version has no such step."""

    signer_id: str
    scheme: str
    key_epoch: int
    old_key_epoch: int
    participants: tuple[int, ...]
    tolerate: int
    fingerprints: tuple[str, ...]
    roster_digest: str
    old_participants: tuple[int, ...]
    old_tolerate: int
    old_fingerprints: tuple[str, ...]
    old_roster_digest: str
    kind: Literal["Reshare"] = "Reshare"


class BackupKeyChangeInfo(_Known, frozen=True, forbid_unknown_fields=True):
    """Other keys that this signer's backups are encrypted to: age recipients. Not asked yet: this version has no such
    step."""

    signer_id: str
    recipients: tuple[str, ...]
    old_recipients: tuple[str, ...]
    roster_digest: str
    kind: Literal["BackupKeyChange"] = "BackupKeyChange"


GateInfo = SignerInfo | BatchSignerInfo | KeyCreationInfo | RefreshInfo | ReshareInfo | BackupKeyChangeInfo


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


class GateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is posted to the handler. `uid`: random, from the enclave; the same for every `attempt` (from 1) at one
    question, whose answer is awaited until `deadline`. `dryRun`: act on nothing, this is a check.

    `signerInfo`: one of `GateInfo` with `request_digest`, the digest of the rest of it.
    """

    version: str
    type: str
    uid: str
    attempt: int
    deadline: str
    dryRun: bool
    signerInfo: dict[str, Any]
    requestInfo: RequestInfo

    @classmethod
    def about(
        cls,
        info: GateInfo,
        request: RequestInfo,
        *,
        uid: str,
        attempt: int,
        deadline_s: int,
        dry_run: bool = False,
    ) -> GateRequest:
        """The question whether to do what `info` says."""
        shown = {**msgspec.to_builtins(info), "request_digest": info.digest()}
        return cls(VERSION, REQUEST_TYPE, uid, attempt, show_time(deadline_s), dry_run, shown, request)


@lru_cache(maxsize=TIMES_CACHED)
def show_time(at_s: int) -> str:
    """Unix seconds as both messages write a time: UTC, `2026-01-01T00:00:00Z`."""
    return "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z".format(*time.gmtime(at_s)[:6])


@lru_cache(maxsize=TIMES_CACHED)
def parse_time(text: str) -> int:
    """Unix seconds of a UTC time, fractions cut off. Raises `ValueError` for all else."""
    if not _TIME.fullmatch(text):
        raise ValueError("not a UTC time such as 2026-01-01T00:00:00Z")
    return int(datetime.fromisoformat(text[:19] + "+00:00").timestamp())


def show_decoded(decoded: Decoded | None) -> dict[str, Any] | None:
    """A decoded payload as a handler reads it: bytes as 0x hex, numbers as decimal strings (wei exceed a double).

    Of an Ethereum transaction also `erc20`: the call of a token that its data is exactly (`policies.erc20`), or null.
    """
    shown = _show(decoded)
    assert shown is None or isinstance(shown, dict)
    if isinstance(decoded, EthereumDecoded) and shown is not None:
        shown["erc20"] = _show(decode_call(decoded.data))
    return shown


def _show(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return {name: _show(field) for name, field in msgspec.structs.asdict(value).items()}
    if isinstance(value, tuple):
        return [_show(item) for item in value]
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return value if value is None or isinstance(value, bool) else str(value)
