"""What a client wants signed: parsed strictly and hashed, so that what is decided on is what is signed.

Pure; Keccak-256 is an argument. Here, since more than the enclave needs it: who writes a policy asks what it says to a
request (`keymoot policy explain`), and must get the enclave's reading of the bytes, not another one.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from policies.decoded import Decoded
from policies.errors import Refused
from policies.model import Kind
from policies.payloads.bitcoin import parse_preimage
from policies.payloads.ethereum import parse_transaction
from policies.payloads.message import parse_message
from policies.requests import BitcoinBip143Preimage, Eip712TypedData, EthereumTransaction, Hash, SigningBody
from policies.typed_data import TypedDataInvalid, hash_typed_data

__all__ = ["Payload", "decode_payload"]


class Payload(msgspec.Struct, frozen=True):
    """`h`: the 32 bytes to sign. `blind`: nobody but the client knows what they stand for; `decoded` is None then."""

    kind: Kind
    h: bytes
    blind: bool
    decoded: Decoded | None


def decode_payload(body: SigningBody, keccak256: Callable[[bytes], bytes]) -> Payload:
    """The payload of a parsed body. Raises `Refused` with a rule `payload/…`, and nothing else."""
    if isinstance(body, Hash):
        return Payload(Kind.HASH, bytes.fromhex(body.hash[2:]), True, None)
    if isinstance(body, EthereumTransaction):
        h, transaction = parse_transaction(bytes.fromhex(body.transaction[2:]), keccak256)
        return Payload(Kind.ETHEREUM_TRANSACTION, h, False, transaction)
    if isinstance(body, Eip712TypedData):
        try:
            h, document = hash_typed_data(body.typed_data, keccak256)
        except TypedDataInvalid as error:
            raise Refused("payload/eip712", str(error)) from None
        return Payload(Kind.EIP712_TYPED_DATA, h, False, document)
    if isinstance(body, BitcoinBip143Preimage):
        h, preimage = parse_preimage(bytes.fromhex(body.preimage[2:]))
        return Payload(Kind.BITCOIN_BIP143_PREIMAGE, h, False, preimage)
    h, message = parse_message(bytes.fromhex(body.message[2:]), body.hash, keccak256)
    return Payload(Kind.MESSAGE, h, False, message)
