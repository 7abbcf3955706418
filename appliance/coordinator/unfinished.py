"""What the last run of the coordinator left unfinished, read back from the store so that it can be taken up."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from appliance.api.derivation import derive
from appliance.coordinator.batches import Item, batch_items
from appliance.coordinator.keybook import CertifiedKey, KeyBook
from appliance.coordinator.messages import message_hash
from appliance.store.batches import BatchRow
from appliance.store.failures import Damaged
from appliance.store.keys import KeyRow
from appliance.store.signatures import SignatureRow
from enclave import wire
from policies.errors import CallerError
from policies.requests import HashBatch, KeyCreation, SigningBody


@dataclass(frozen=True)
class UnfinishedSignature:
    """What a signing request asks for: the kind of it, the 32 bytes to sign, and the child key it is for (33 bytes)."""

    kind: str
    h: bytes
    public_key: bytes


def client_request(row: KeyRow | SignatureRow | BatchRow) -> wire.ClientRequest:
    """The request as its client signed it. What it called it in logs is not on disk."""
    return wire.ClientRequest("POST", row.path, row.body, row.jws, row.id)


def wanted_label(row: KeyRow) -> str:
    """The label of the key that is asked for. Raises `Damaged`."""
    try:
        return msgspec.json.decode(row.body, type=KeyCreation).label
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(row.id, str(error)) from None


def wanted_signature(row: SignatureRow, keybook: KeyBook) -> UnfinishedSignature:
    """Raises `Damaged`."""
    facts = _key(row, keybook).acknowledgement
    try:
        body = msgspec.json.decode(row.body, type=SigningBody)
        h = message_hash(body)
        public_key, _ = derive(facts.public_key, facts.chain_code, body.derivation_path)
    except (msgspec.DecodeError, UnicodeDecodeError, CallerError) as error:
        raise Damaged(row.id, str(error)) from None
    return UnfinishedSignature(type(body).__name__, h, public_key)


async def wanted_items(row: BatchRow, keybook: KeyBook) -> tuple[Item, ...]:
    """The hashes of a batch with their child keys. Raises `Damaged`."""
    key = _key(row, keybook)
    try:
        return await batch_items(msgspec.json.decode(row.body, type=HashBatch), key.acknowledgement)
    except (msgspec.DecodeError, UnicodeDecodeError, CallerError) as error:
        raise Damaged(row.id, str(error)) from None


def _key(row: SignatureRow | BatchRow, keybook: KeyBook) -> CertifiedKey:
    key = keybook.get(row.key_id)
    if key is None:
        raise Damaged(row.id, f"its key {row.key_id} is not there")
    return key
