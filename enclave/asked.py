"""What a verified request asks to have signed, one hash or a batch of them (SPEC 4.1, 4.7): parsed, put to the policy,
and put into words for the gate. Nothing is spent or remembered here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from enclave.attempts import Item
from enclave.crypto import bip32
from enclave.crypto.curve import SECP256K1
from enclave.errors import Refused
from enclave.payloads import decode_payload
from enclave.protocol import sign
from enclave.requests import GivenApproval, VerifiedRequest, parse_hash_batch, parse_signing_body
from enclave.wire import Acknowledgement
from policies.counters import MAX_COUNTS, NOTHING, Charge, Counters
from policies.decide import AskGate, Refuse, decide
from policies.decoded import Decoded
from policies.facts import Request
from policies.gate_messages import BatchItemInfo, BatchSignerInfo, RequestInfo, SignerInfo, show_decoded
from policies.limits import Anomaly
from policies.model import Action, Kind, Policy

PATHS_AT_ONCE = 32
"""So many child keys are derived before other work has its turn."""

Pause = Callable[[], Awaitable[None]]


class AskedItem(msgspec.Struct, frozen=True):
    """One hash (32 bytes) that is to be signed with the child key of `path`."""

    path: tuple[int, ...]
    h: bytes


class Asked(msgspec.Struct, frozen=True):
    """One request, understood. `decoded` is None for what is blind. `approvers`: whose approvals verified;
    `lifetime_s`: for how long it was signed."""

    client_id: str
    batch: bool
    kind: Kind
    blind: bool
    external_id: str
    decoded: Decoded | None
    items: tuple[AskedItem, ...]
    approvers: tuple[GivenApproval, ...] = ()
    lifetime_s: int = 0


def understand(request: VerifiedRequest, batch: bool) -> tuple[Asked, dict[str, Any]]:
    """Parse the body; it, and how the gate sees it, which can be large. Raises `Refused`."""
    if batch:
        return _understand_batch(request)
    body = parse_signing_body(request)
    payload = decode_payload(body)
    sign.message_scalar(payload.h, SECP256K1)
    asked = Asked(
        client_id=request.client_id,
        batch=False,
        kind=payload.kind,
        blind=payload.blind,
        external_id=body.external_id,
        decoded=payload.decoded,
        items=(AskedItem(body.derivation_path, payload.h),),
        approvers=request.approvers,
        lifetime_s=request.lifetime_s,
    )
    return asked, msgspec.to_builtins(body)


def _understand_batch(request: VerifiedRequest) -> tuple[Asked, dict[str, Any]]:
    # SPEC 4.7
    body = parse_hash_batch(request)
    items = tuple(
        AskedItem(path, bytes.fromhex(text[2:])) for text, path in zip(body.hashes, body.paths(), strict=True)
    )
    for item in items:
        sign.message_scalar(item.h, SECP256K1)
    asked = Asked(
        client_id=request.client_id,
        batch=True,
        kind=Kind.HASH_BATCH,
        blind=True,
        external_id=body.external_id,
        decoded=None,
        items=items,
        approvers=request.approvers,
        lifetime_s=request.lifetime_s,
    )
    # The hashes and paths themselves are in what the enclave says.
    return asked, {"kind": Kind.HASH_BATCH.value, "externalId": body.external_id, "count": len(items)}


async def derive_items(asked: Asked, key: Acknowledgement, pause: Pause) -> tuple[Item, ...]:
    """With the child key of each: once the policy permits it, since there may be a thousand. Raises `Refused`."""
    derived: dict[tuple[int, ...], tuple[bytes, int]] = {}
    for item in asked.items:
        if item.path not in derived:
            derived[item.path] = bip32.derive(key.public_key, key.chain_code, item.path)
            if len(derived) % PATHS_AT_ONCE == 0:
                await pause()
    return tuple(Item(item.path, *derived[item.path], item.h) for item in asked.items)


class Permitted(msgspec.Struct, frozen=True):
    """What the policy permits. `charge`: what its signature adds to the counters (SPEC 7.3). `anomalies` are told;
    `to_gate`: those that the gate must see."""

    charge: Charge = NOTHING
    anomalies: tuple[Anomaly, ...] = ()
    to_gate: tuple[Anomaly, ...] = ()


def check_policy(policy: Policy, asked: Asked, label: str, counters: Counters, now_s: int) -> Permitted:
    """Raises `Refused` unless the policy permits every path that is signed with."""
    # SPEC 4.13: an approval counts while it lasts, and its client's key is in the policy that decides.
    approved_at_s = {
        one.id: one.given_s
        for one in asked.approvers
        if one.expires_at_s > now_s and policy.client(one.id) == one.client
    }
    charge = NOTHING
    anomalies: set[Anomaly] = set()
    to_gate: set[Anomaly] = set()
    count_of: dict[tuple[int, ...], int] = {}
    for item in asked.items:
        count_of[item.path] = count_of.get(item.path, 0) + 1
    for path, signatures in count_of.items():
        decision = decide(
            policy,
            Request(
                client_id=asked.client_id,
                action=Action.SIGN,
                label=label,
                kind=asked.kind,
                blind=asked.blind,
                derivation_path=path,
                decoded=asked.decoded,
                signatures=signatures,
                approvers=frozenset(approved_at_s),
                approved_at_s=approved_at_s,
                lifetime_s=asked.lifetime_s,
            ),
            counters,
            now_s,
            charge,
        )
        if isinstance(decision, Refuse):
            raise Refused(decision.rule, decision.reason)
        if isinstance(decision, AskGate):
            if decision.charge:
                charge = charge.plus(decision.charge)
            if decision.anomalies:
                anomalies.update(decision.anomalies)
                to_gate.update(decision.to_gate)
    if len(charge.counts) > MAX_COUNTS:
        raise Refused("policy/limits", f"more than {MAX_COUNTS} counters would count one request")
    if not anomalies:
        return Permitted(charge)
    return Permitted(charge, tuple(sorted(anomalies)), tuple(sorted(to_gate)))


def signer_info(
    asked: Asked,
    items: tuple[Item, ...],
    key: Acknowledgement,
    committee: tuple[int, ...],
    signer_name: str,
    anomalies: tuple[Anomaly, ...] = (),
) -> SignerInfo | BatchSignerInfo:
    """What this enclave itself tells its gate (SPEC 6.4)."""
    if asked.batch:
        return BatchSignerInfo(
            kind="SigningBatch",
            key_id=key.key_id,
            public_key=key.public_key.hex(),
            items=tuple(BatchItemInfo(item.h.hex(), item.path, item.child.hex()) for item in items),
            signer_id=signer_name,
            scheme="ECDSA",
            curve=key.curve,
            key_epoch=key.key_epoch,
            participants=committee,
            blind=asked.blind,
            anomalies=anomalies,
        )
    (item,) = items
    return SignerInfo(
        kind="Signing",
        key_id=key.key_id,
        public_key=key.public_key.hex(),
        tx_hash=item.h.hex(),
        derivation_path=item.path,
        child_public_key=item.child.hex(),
        signer_id=signer_name,
        scheme="ECDSA",
        curve=key.curve,
        key_epoch=key.key_epoch,
        participants=committee,
        blind=asked.blind,
        anomalies=anomalies,
    )


def request_info(asked: Asked, shown: dict[str, Any], network: str) -> RequestInfo:
    """What the client says, for the gate. `shown`: see `understand`."""
    return RequestInfo(
        requester=asked.client_id,
        external_id=asked.external_id,
        network=network,
        payload=shown,
        decoded=show_decoded(asked.decoded),
    )
