"""The 32 bytes that a signing request asks to have signed, worked out from the body alone."""

from __future__ import annotations

import hashlib

from Crypto.Hash import keccak

from policies.requests import BitcoinBip143Preimage, EthereumTransaction, Hash, SigningBody


def message_hash(body: SigningBody) -> bytes:
    """The hash for `body`, 32 bytes. The enclaves parse what is hashed; here it only has to match theirs."""
    match body:
        case Hash(hash=text):
            return bytes.fromhex(text[2:])
        case EthereumTransaction(transaction=text):
            return keccak.new(data=bytes.fromhex(text[2:]), digest_bits=256).digest()
        case BitcoinBip143Preimage(preimage=text):
            return hashlib.sha256(hashlib.sha256(bytes.fromhex(text[2:])).digest()).digest()
