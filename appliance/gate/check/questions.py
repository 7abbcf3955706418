"""Questions as an enclave asks them, about a transfer that nobody asked for; whole or with one thing wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from appliance.gate.check.keys import Key, header_of
from enclave.wire import CallGate
from policies.errors import CallerError
from policies.gate_messages import BatchItemInfo, BatchSignerInfo, GateRequest, RequestInfo, SignerInfo, show_decoded
from policies.json_strict import parse_json
from policies.keccak import keccak256
from policies.payloads import decode_payload
from policies.requests import SigningBody
from policies.transcript import Tag, digest

DEADLINE_S = 60
PUBLIC_KEY = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"  # the generator: nobody's key
CHILD_KEY = "02ccd3fcfc3d87c29eb43b1ea04103c9b0efb364fd877e93a12b5c6ace92507030"
KEY_ID = "key_" + "00" * 16
TRANSACTION = "0x02f00107843b9aca008506fc23ac0082520894d8da6bf26964af9d7eed9e03e53415d37aa9604588016345785d8a000080c0"
SIGNER_INFO = SignerInfo(
    kind="Signing",
    key_id=KEY_ID,
    public_key=PUBLIC_KEY,
    tx_hash="b4e79c5c3a88b8ea6e85f4c75a98ee1cc850cf9ccbd020781fd251e5da4878dd",
    derivation_path=(0, 5),
    child_public_key=CHILD_KEY,
    signer_id="gate-check",
    scheme="ECDSA",
    curve="secp256k1",
    key_epoch=1,
    participants=(1, 2, 3),
    blind=False,
)
REQUEST_INFO = RequestInfo(
    requester="gate-check",
    external_id="gate-check-1",
    network="gate-check",
    payload={
        "kind": "EthereumTransaction",
        "transaction": TRANSACTION,
        "externalId": "gate-check-1",
        "derivationPath": [0, 5],
    },
    decoded={
        "type": "2",
        "chain_id": "1",
        "nonce": "7",
        "gas_price": None,
        "max_priority_fee_per_gas": "1000000000",
        "max_fee_per_gas": "30000000000",
        "gas_limit": "21000",
        "to": "0xd8da6bf26964af9d7eed9e03e53415d37aa96045",
        "value": "100000000000000000",
        "data": "0x",
        "access_list": [],
        "erc20": None,
    },
)
BATCH_INFO = BatchSignerInfo(
    kind="SigningBatch",
    key_id=KEY_ID,
    public_key=PUBLIC_KEY,
    items=tuple(BatchItemInfo(f"{number:064x}", (0, 5), CHILD_KEY) for number in (1, 2)),
    signer_id="gate-check",
    scheme="ECDSA",
    curve="secp256k1",
    key_epoch=1,
    participants=(1, 2, 3),
    blind=True,
)
BATCH_REQUEST = {
    "requester": "gate-check",
    "externalId": "gate-check-2",
    "network": "gate-check",
    "payload": {"kind": "HashBatch", "externalId": "gate-check-2", "count": 2},
    "decoded": None,
    "untrusted": True,
}

_sorted_json = msgspec.json.Encoder(order="sorted")


class Parts(msgspec.Struct, frozen=True):
    """What differs from the sample. A whole question, as a handler logged it, is one too: the rest is made anew."""

    signerInfo: dict[str, Any] = {}
    requestInfo: dict[str, Any] = {}


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
    """Parts from a file, or from the body of a client's signing request, decoded as enclaves do. Raises `CallerError`,
    or `Refused` where enclaves refuse what the body holds."""
    try:
        said = parse_json(data)
        msgspec.json.encode(said)  # what cannot be sent is none
        if isinstance(said, dict) and "kind" in said:
            return _of_body(msgspec.convert(said, SigningBody))
        return msgspec.convert(said, Parts)
    except (ValueError, msgspec.ValidationError) as error:
        raise CallerError(
            f"{where} must be a signing request's body, or what differs from the sample, such as "
            f'{{"requestInfo": {{"decoded": {{…}}}}}}: {error}'
        ) from None


def _of_body(body: SigningBody) -> Parts:
    payload = decode_payload(body, keccak256)
    info = {"tx_hash": payload.h.hex(), "derivation_path": list(body.derivation_path), "blind": payload.blind}
    shown = {"payload": msgspec.to_builtins(body), "decoded": show_decoded(payload.decoded)}
    return Parts(info, {**shown, "externalId": body.external_id})


def question(
    uid: str,
    deadline_s: int,
    *,
    dry_run: bool,
    attempt: int = 1,
    parts: Parts | None = None,
    info: SignerInfo | BatchSignerInfo = SIGNER_INFO,
    info_changes: dict[str, Any] | None = None,
    **changes: Any,
) -> Question:
    """The sample with `parts` in it, then `info_changes` of `signerInfo`, then `changes` of the whole message. The
    digest fits what `signerInfo` says in the end."""
    asked = GateRequest.about(info, REQUEST_INFO, uid=uid, attempt=attempt, deadline_s=deadline_s, dry_run=dry_run)
    message: dict[str, Any] = msgspec.to_builtins(asked)
    parts = parts or Parts()
    said = {**message["signerInfo"], **parts.signerInfo, **(info_changes or {})}
    said.pop("request_digest")
    message["signerInfo"] = {**said, "request_digest": digest(Tag.GATE_REQUEST, _sorted_json.encode(said)).hex()}
    message["requestInfo"] = {**message["requestInfo"], **parts.requestInfo}
    message |= changes
    return Question(uid, msgspec.json.encode(message), message)
