"""Verification of a finished signature, by libsecp256k1: the coordinator's and the client's one way to do it.

Recovering the signer's key from a signature verifies it: exactly the signatures that hold under a key recover it, with
one recovery id each. OpenSSL, which is a second opinion in the tests and the demo, takes seven times as long.
"""

from __future__ import annotations

import coincurve

from appliance.api.derivation import SECP256K1_ORDER


def verifies(public_key: bytes, h: bytes, r: bytes, s: bytes, recid: int) -> bool:
    """Whether the low-s signature `r`, `s` (32 bytes each) on the 32 bytes `h` holds under the 33-byte `public_key`,
    with this recovery id."""
    if recid not in range(4) or int.from_bytes(s, "big") > SECP256K1_ORDER // 2:
        return False
    try:
        recovered = coincurve.PublicKey.from_signature_and_message(r + s + bytes([recid]), h, hasher=None)
    except ValueError:
        return False
    return recovered.format() == public_key
