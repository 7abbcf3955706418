"""BIP-32 non-hardened derivation as one additive tweak `ε`: the child key is `X + ε·G` (SPEC 4.2)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from enclave.crypto.curve import SECP256K1, InvalidPoint
from policies.errors import Refused


def derive(public_key: bytes, chain_code: bytes, path: Sequence[int]) -> tuple[bytes, int]:
    """Child key (33 bytes) and total tweak `ε` for a path of indices below 2^31.

    Raises `Refused` at the indices BIP-32 calls invalid (probability below 2^-127 each).
    """
    child, code, tweak = public_key, chain_code, 0
    for index in path:
        mac = hmac.digest(code, child + index.to_bytes(4, "big"), hashlib.sha512)
        step, code = int.from_bytes(mac[:32], "big"), mac[32:]
        if not 0 < step < SECP256K1.q:
            raise Refused("path", f"index {index} has no child key in BIP-32; use the next one")
        tweak = (tweak + step) % SECP256K1.q
        try:
            child = SECP256K1.add([child, SECP256K1.generate(step)])
        except InvalidPoint:
            raise Refused("path", f"index {index} has no child key in BIP-32; use the next one") from None
    return child, tweak
