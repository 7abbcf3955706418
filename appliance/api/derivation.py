"""BIP-32 public (non-hardened) derivation, by which clients know the child key of a signature.

Source: BIP-32, "Public parent key → public child key". The enclave has its own; both pass the same vectors.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from functools import lru_cache

import coincurve

from policies.errors import CallerError

SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
MAX_DEPTH = 10
HARDENED = 2**31


def derive(public_key: bytes, chain_code: bytes, path: Sequence[int]) -> tuple[bytes, int]:
    """The child key at `path` (33 bytes compressed) and the tweak `ε` with child = key + ε·G, `0 ≤ ε < q`.

    `public_key`: 33 bytes; `chain_code`: 32 bytes. Raises `CallerError` for a malformed key, a hardened or
    negative index, more than 10 levels, and the indices that BIP-32 calls invalid (chance below 2^-127).
    """
    return _derive(public_key, chain_code, tuple(path))


# Most requests are for child keys that were asked for before, and nothing here is secret.
@lru_cache(maxsize=1024)
def _derive(public_key: bytes, chain_code: bytes, path: tuple[int, ...]) -> tuple[bytes, int]:
    if len(path) > MAX_DEPTH:
        raise CallerError(f"derivation path has {len(path)} levels, at most {MAX_DEPTH} are allowed")
    if len(public_key) != 33 or len(chain_code) != 32:
        raise CallerError("derivation needs a 33-byte compressed public key and a 32-byte chain code")
    try:
        point = coincurve.PublicKey(public_key)
    except ValueError:
        raise CallerError("the public key is not a point of secp256k1") from None
    code, tweak = chain_code, 0
    for index in path:
        if not 0 <= index < HARDENED:
            raise CallerError(f"index {index} is not in 0..2^31-1: a public key has no hardened children")
        mac = hmac.digest(code, point.format() + index.to_bytes(4, "big"), hashlib.sha512)
        step, code = mac[:32], mac[32:]
        point = _add(point, step, index)
        tweak = (tweak + int.from_bytes(step, "big")) % SECP256K1_ORDER
    return point.format(), tweak


def _add(point: coincurve.PublicKey, step: bytes, index: int) -> coincurve.PublicKey:
    if not 0 < int.from_bytes(step, "big") < SECP256K1_ORDER:
        raise CallerError(f"index {index} has no child key in BIP-32; use the next one")
    try:
        return point.add(step)
    except ValueError:
        raise CallerError(f"index {index} has no child key in BIP-32; use the next one") from None
