"""What the demo signs, and how independent software looks at the result: eth-account, OpenSSL, libsecp256k1."""

from __future__ import annotations

import coincurve
import rlp
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from eth_account import Account

from appliance.api.models import SignatureValue

DESTINATION = "0xd8da6bf26964af9d7eed9e03e53415d37aa96045"
REFUSED_DESTINATION = "0x000000000000000000000000000000000000dead"
_TYPE_EIP1559 = b"\x02"

# Source: BIP-143, "Native P2WPKH": the preimage of the second input's signature hash, field by field.
BIP143_PREIMAGE = bytes.fromhex(
    "01000000"
    "96b827c8483d4e9b96712b6713a7b68d6e8003a781feba36c31143470b4efd37"
    "52b0a642eea2fb7ae638c36f6252b6750293dbe574a806984b8e4d8548339a3b"
    "ef51e1b804cc89d182d279655c3aa89e815b1b309fe287d9b2b55d57b90ec68a01000000"
    "1976a9141d0f172a0ecb48aee1be1f2687d2963ae33f71a188ac"
    "0046c32300000000"
    "ffffffff"
    "863ef3e1a92afbfdb97f31ad0fc7683ee943e9abcf2501590ff8f6551f47e5e5"
    "11000000"
    "01000000"
)
BIP143_SIGHASH = "c37af31116d1b27caf68aae9e3ac82f1477929014d5b917657d0eb49478cb670"


def unsigned_transaction(destination: str) -> str:
    """A transfer of 1.5 ether on mainnet as an unsigned EIP-1559 transaction, hex with 0x."""
    return "0x" + (_TYPE_EIP1559 + bytes(rlp.encode(_fields(destination)))).hex()


def recovered_sender(destination: str, value: SignatureValue) -> str:
    """The sender that eth-account recovers from the transaction with this signature."""
    signature = [value.recid, int(value.r, 16), int(value.s, 16)]
    raw = _TYPE_EIP1559 + rlp.encode([*_fields(destination), *signature])
    sender: str = Account.recover_transaction(raw)
    return sender


def openssl_verifies(public_key: bytes, value: SignatureValue, preimage: bytes) -> bool:
    """Whether OpenSSL finds the DER signature valid over the double SHA-256 of `preimage`."""
    once = hashes.Hash(hashes.SHA256())
    once.update(preimage)
    twice = hashes.Hash(hashes.SHA256())
    twice.update(once.finalize())
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public_key)
    try:
        key.verify(bytes.fromhex(value.der[2:]), twice.finalize(), ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return True


def libsecp256k1_verifies(public_key: bytes, value: SignatureValue) -> bool:
    """Whether libsecp256k1 (which accepts low s alone) finds the DER signature valid over its hash."""
    key = coincurve.PublicKey(public_key)
    return bool(key.verify(bytes.fromhex(value.der[2:]), bytes.fromhex(value.hash[2:]), hasher=None))


def _fields(destination: str) -> list[object]:
    """Chain, nonce, priority fee, highest fee, gas, destination, value, data, access list."""
    gwei = 10**9
    to = bytes.fromhex(destination[2:])
    return [1, 0, 2 * gwei, 30 * gwei, 21_000, to, 3 * 10**18 // 2, b"", []]
