"""BIP-32 non-hardened derivation as one additive tweak `ε`: the child key is `X + ε·G` (SPEC 4.2)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from functools import lru_cache

from enclave.crypto.curve import SECP256K1, InvalidPoint
from policies.errors import Refused

CACHED_CHILDREN = 4096
"""So many levels of paths are remembered: accounts and addresses that are signed with again and again."""


def derive(public_key: bytes, chain_code: bytes, path: Sequence[int]) -> tuple[bytes, int]:
    """Child key (33 bytes) and total tweak `ε` for a path of indices below 2^31.

    Raises `Refused` at the indices BIP-32 calls invalid (probability below 2^-127 each).
    """
    child, code, tweak = public_key, chain_code, 0
    for index in path:
        child, code, step = _child(child, code, index)
        tweak = (tweak + step) % SECP256K1.q
    return child, tweak


@lru_cache(maxsize=CACHED_CHILDREN)
def _child(parent: bytes, code: bytes, index: int) -> tuple[bytes, bytes, int]:
    """Child key, its chain code and its tweak: one level of a path, all of it public."""
    mac = hmac.digest(code, parent + index.to_bytes(4, "big"), hashlib.sha512)
    step = int.from_bytes(mac[:32], "big")
    if not 0 < step < SECP256K1.q:
        raise Refused("path", f"index {index} has no child key in BIP-32; use the next one")
    try:
        return SECP256K1.add([parent, SECP256K1.generate(step)]), mac[32:], step
    except InvalidPoint:
        raise Refused("path", f"index {index} has no child key in BIP-32; use the next one") from None
