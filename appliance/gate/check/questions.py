"""Questions as an enclave asks them, made of the samples; whole or with one thing wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from appliance.gate.check.keys import Key, header_of
from appliance.gate.check.samples import CHILD_KEY, SAMPLES
from enclave.wire import CallGate
from policies.errors import CallerError
from policies.gate_messages import GateRequest, show_decoded
from policies.json_strict import parse_json
from policies.keccak import keccak256
from policies.payloads import decode_payload
from policies.requests import HashBatch, KeyCreation, SigningBody
from policies.transcript import Tag, digest

DEADLINE_S = 60
# What holds for every kind of question that one signer's enclave asks.
SAME_SIGNER = ("signer_id", "key_id", "public_key")
SAME_NETWORK = ("requester", "network")

_sorted_json = msgspec.json.Encoder(order="sorted")


class Parts(msgspec.Struct, frozen=True):
    """What differs from the sample. A whole question, as a handler logged it, is one too: the rest is made anew."""

    signerInfo: dict[str, Any] = {}
    requestInfo: dict[str, Any] = {}

    @property
    def kind(self) -> str:
        """Of the sample that they belong into."""
        said = self.signerInfo.get("kind")
        return said if isinstance(said, str) and said in SAMPLES else "Signing"

    def for_kind(self, kind: str) -> Parts:
        """What of them a question of `kind` can have: for another one only who asks whom."""
        if kind == self.kind:
            return self
        known = {name: self.signerInfo[name] for name in SAME_SIGNER if name in self.signerInfo}
        fields = SAMPLES[kind].info.__struct_fields__
        return Parts(
            {name: value for name, value in known.items() if name in fields},
            {name: self.requestInfo[name] for name in SAME_NETWORK if name in self.requestInfo},
        )


@dataclass(frozen=True)
class Question:
    """One message to the handler. `message` is what `body` says, where it says anything."""

    uid: str
    body: bytes
    message: dict[str, Any] = field(default_factory=dict)

    def call(
        self, keys: tuple[Key, ...], at_s: int, timeout_s: float, *, signature: str | None = None, body: bytes = b""
    ) -> CallGate:
        """It, signed by `keys` at `at_s`; or with another `signature`, or with that of `body`."""
        if signature is None:
            signature = header_of(keys, self.uid, str(at_s), body or self.body)
        return CallGate(self.uid, self.uid, str(at_s), signature, self.body, int(timeout_s * 1000), "gate-check")


def parse_parts(data: bytes, where: str) -> Parts:
    """Parts from a file, or from a request's body as clients sign it, decoded as enclaves do. Raises `CallerError`, or
    `Refused` where enclaves refuse what the body holds."""
    try:
        said = parse_json(data)
        msgspec.json.encode(said)  # what cannot be sent is none
        if not isinstance(said, dict):
            raise ValueError("not an object")
        if said.get("kind") == "HashBatch":
            return _of_batch(msgspec.convert(said, HashBatch))
        if "kind" in said:
            return _of_body(msgspec.convert(said, SigningBody))
        if "scheme" in said:
            return _of_creation(msgspec.convert(said, KeyCreation))
        if said and not said.keys() & {"signerInfo", "requestInfo"}:
            raise ValueError("it has neither kind, nor scheme, nor signerInfo or requestInfo")
        parts = msgspec.convert(said, Parts)
        if not isinstance(parts.requestInfo.get("payload", {}), dict):
            raise ValueError("requestInfo.payload is not an object")
        return parts
    except (ValueError, msgspec.ValidationError) as error:
        raise CallerError(
            f"{where} must be the body of a request for a signature, a batch or a key, or what differs from the "
            f'sample, such as {{"requestInfo": {{"decoded": {{…}}}}}}: {error}'
        ) from None


def _of_body(body: SigningBody) -> Parts:
    payload = decode_payload(body, keccak256)
    info = {"tx_hash": payload.h.hex(), "derivation_path": list(body.derivation_path), "blind": payload.blind}
    shown = {"payload": msgspec.to_builtins(body), "decoded": show_decoded(payload.decoded)}
    return Parts(info, {**shown, "externalId": body.external_id})


def _of_batch(body: HashBatch) -> Parts:
    items = [
        {"tx_hash": h.removeprefix("0x"), "derivation_path": list(path), "child_public_key": CHILD_KEY}
        for h, path in zip(body.hashes, body.paths(), strict=True)
    ]
    shown = {"kind": "HashBatch", "externalId": body.external_id, "count": len(items)}
    return Parts({"kind": "SigningBatch", "items": items}, {"payload": shown, "externalId": body.external_id})


def _of_creation(body: KeyCreation) -> Parts:
    info: dict[str, Any] = {"kind": "KeyCreation", "label": body.label, "scheme": body.scheme, "curve": body.curve}
    info |= {"participants": list(range(1, body.signers + 1)), "tolerate": body.tolerate}
    return Parts(info, {"payload": msgspec.to_builtins(body), "externalId": body.external_id})


def question(
    uid: str,
    deadline_s: int,
    *,
    dry_run: bool,
    attempt: int = 1,
    parts: Parts | None = None,
    kind: str | None = None,
    info_changes: dict[str, Any] | None = None,
    **changes: Any,
) -> Question:
    """The sample of `kind`, by default that of `parts`, with them in it; then `info_changes` of `signerInfo`, then
    `changes` of the whole message. The digest fits what `signerInfo` says in the end."""
    parts = parts or Parts()
    kind = kind or parts.kind
    info, request = SAMPLES[kind]
    asked = GateRequest.about(info, request, uid=uid, attempt=attempt, deadline_s=deadline_s, dry_run=dry_run)
    message: dict[str, Any] = msgspec.to_builtins(asked)
    parts = parts.for_kind(kind)
    said = {**message["signerInfo"], **parts.signerInfo, **(info_changes or {})}
    said.pop("request_digest")
    message["signerInfo"] = {**said, "request_digest": digest(Tag.GATE_REQUEST, _sorted_json.encode(said)).hex()}
    message["requestInfo"] = {**message["requestInfo"], **parts.requestInfo}
    message |= changes
    return Question(uid, msgspec.json.encode(message), message)
