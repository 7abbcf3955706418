"""What a client checks of a returned signature: the hash, the key, every encoding of it."""

from __future__ import annotations

import hashlib

from Crypto.Hash import keccak
from cryptography.hazmat.primitives.asymmetric import utils

from appliance.api.derivation import SECP256K1_ORDER
from appliance.api.ecdsa import verifies
from appliance.api.models import SignatureValue
from policies.errors import KeymootError
from policies.requests import (
    BitcoinBip143Preimage,
    Eip712TypedData,
    EthereumTransaction,
    Hash,
    Message,
    MessageHash,
    SigningBody,
)
from policies.typed_data import hash_typed_data


class SignatureRefused(KeymootError):
    """A returned signature is not one over the expected hash under the certified key."""


def what_is_signed(body: SigningBody) -> bytes:
    """The 32 bytes that a signature over `body` is over, computed here. Raises `CallerError` for typed data that has
    no hash."""
    match body:
        case Hash():
            return bytes.fromhex(body.hash[2:])
        case Message():
            return _message_hash(bytes.fromhex(body.message[2:]), body.hash)
        case EthereumTransaction():
            return _keccak256(bytes.fromhex(body.transaction[2:]))
        case Eip712TypedData():
            h, _ = hash_typed_data(body.typed_data, _keccak256)
            return h
        case BitcoinBip143Preimage():
            return _sha256(_sha256(bytes.fromhex(body.preimage[2:])))


def _message_hash(message: bytes, name: MessageHash) -> bytes:
    match name:
        case MessageHash.SHA_256:
            return _sha256(message)
        case MessageHash.KECCAK_256:
            return _keccak256(message)
        case MessageHash.SHA_256D:
            return _sha256(_sha256(message))
        case MessageHash.EIP_191:
            return _keccak256(b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _keccak256(data: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=data).digest()


def verify_signature(value: SignatureValue | None, public_key: bytes, expected_hash: bytes | None) -> None:
    """Raises `SignatureRefused` unless `value` is a low-s signature under the 33-byte `public_key`, over
    `expected_hash` (None: over the hash it names), with `recid`, `der` and `rsv` that say the same."""
    if value is None:
        raise SignatureRefused("the answer says Signed but holds no signature")
    r, s, named_hash = _bytes(value.r, 32), _bytes(value.s, 32), _bytes(value.hash, 32)
    if expected_hash is not None and named_hash != expected_hash:
        raise SignatureRefused(f"the signature is over {value.hash}, not over what was asked for")
    if _bytes(value.public_key, 33) != public_key:
        raise SignatureRefused(f"the signature is under {value.public_key}, not under the certified key")
    if int.from_bytes(s, "big") > SECP256K1_ORDER // 2:
        raise SignatureRefused("the signature's s is not low")
    der = utils.encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    if value.recid not in range(4) or value.rsv != "0x" + (r + s).hex() + f"{value.recid:02x}":
        raise SignatureRefused("rsv does not hold r, s and recid")
    if value.der != "0x" + der.hex():
        raise SignatureRefused("der does not hold r and s")
    if not verifies(public_key, named_hash, r, s, value.recid):
        raise SignatureRefused("the signature does not verify under the certified key with its recid")


def _bytes(text: str, size: int) -> bytes:
    try:
        data = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        data = b""
    if len(data) != size or text != "0x" + data.hex():
        raise SignatureRefused(f"expected {size} bytes as 0x and lowercase hex, got {text[:80]!r}")
    return data
