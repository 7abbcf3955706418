"""The hash functions that payloads are signed under. 32 bytes each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

DIGEST_BYTES = 32


def sha256(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def sha256d(data: bytes) -> bytes:
    """SHA-256 twice, as Bitcoin does."""
    return sha256(sha256(data))


def eip191(message: bytes, keccak256: Callable[[bytes], bytes]) -> bytes:
    """Ethereum's `personal_sign`: Keccak-256 over a prefix with the length, then the message. Source: EIP-191."""
    return keccak256(b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message)
