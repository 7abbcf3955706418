"""A question of each kind (SPEC 6.4), about what nobody asked for: a transfer, and steps that concern nobody's keys."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from policies.gate_messages import (
    BackupKeyChangeInfo,
    BatchItemInfo,
    BatchSignerInfo,
    GateInfo,
    KeyCreationInfo,
    RefreshInfo,
    RequestInfo,
    ReshareInfo,
    SignerInfo,
)

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
BATCH_REQUEST = msgspec.structs.replace(
    REQUEST_INFO,
    external_id="gate-check-2",
    payload={"kind": "HashBatch", "externalId": "gate-check-2", "count": 2},
    decoded=None,
)
CREATION_INFO = KeyCreationInfo(
    label="gate-check/1",
    signer_id="gate-check",
    scheme="ECDSA",
    curve="secp256k1",
    key_epoch=1,
    participants=(1, 2, 3),
    tolerate=1,
    roster_digest="11" * 32,
)
CREATION_REQUEST = msgspec.structs.replace(
    REQUEST_INFO,
    external_id="gate-check-3",
    payload={
        "scheme": "ECDSA",
        "curve": "secp256k1",
        "signers": 3,
        "tolerate": 1,
        "label": "gate-check/1",
        "externalId": "gate-check-3",
    },
    decoded=None,
)
REFRESH_INFO = RefreshInfo(
    signer_id="gate-check",
    scheme="ECDSA",
    key_epoch=2,
    old_key_epoch=1,
    participants=(1, 2, 3),
    tolerate=1,
    roster_digest="11" * 32,
)
OLD_FINGERPRINTS = tuple(":".join([f"{number:04x}"] * 8) for number in (1, 2, 3))
STRANGERS = tuple(":".join([f"bad{number:x}"] * 8) for number in (1, 2, 3))
RESHARE_INFO = ReshareInfo(
    signer_id="gate-check",
    scheme="ECDSA",
    key_epoch=2,
    old_key_epoch=1,
    participants=(1, 2, 3),
    tolerate=1,
    fingerprints=STRANGERS,
    roster_digest="22" * 32,
    old_participants=(1, 2, 3),
    old_tolerate=1,
    old_fingerprints=OLD_FINGERPRINTS,
    old_roster_digest="11" * 32,
)
# Each the hash of a text: nobody has a key to it.
BACKUP_INFO = BackupKeyChangeInfo(
    signer_id="gate-check",
    recipients=("age1pdgagngcrwut05dfgg9clh848p3lxzcelqc73w5mrr3resf94uqqm4tu9j",),
    old_recipients=("age16g28ztfecrfujn82qjgljhduhc5f0w55lwcxj0h7qrk8vmcljuqqet9pwq",),
    roster_digest="11" * 32,
)
# No request for these steps is defined yet.
STEP_REQUEST = msgspec.structs.replace(REQUEST_INFO, external_id="gate-check-4", payload={}, decoded=None)


class Sample(NamedTuple):
    """What the enclave knows, and what the client says."""

    info: GateInfo
    request: RequestInfo


SAMPLES: dict[str, Sample] = {
    sample.info.kind: sample
    for sample in (
        Sample(SIGNER_INFO, REQUEST_INFO),
        Sample(BATCH_INFO, BATCH_REQUEST),
        Sample(CREATION_INFO, CREATION_REQUEST),
        Sample(REFRESH_INFO, STEP_REQUEST),
        Sample(RESHARE_INFO, STEP_REQUEST),
        Sample(BACKUP_INFO, STEP_REQUEST),
    )
}
