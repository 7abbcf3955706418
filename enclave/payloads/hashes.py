"""The hash functions that payloads are signed under. 32 bytes each."""

from __future__ import annotations

import hashlib

from Crypto.Hash import keccak

DIGEST_BYTES = 32


def keccak256(data: bytes) -> bytes:
    """Keccak-256 with Ethereum's padding, which is not SHA3-256's."""
    return keccak.new(digest_bits=256, data=data).digest()


def sha256(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def sha256d(data: bytes) -> bytes:
    """SHA-256 twice, as Bitcoin does."""
    return sha256(sha256(data))


def eip191(message: bytes) -> bytes:
    """Ethereum's `personal_sign`: Keccak-256 over a prefix with the length, then the message. Source: EIP-191."""
    return keccak256(b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message)
