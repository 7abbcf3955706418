"""Schnorr proof of knowledge of `f_i(0)`, bound to a context by the caller (SPEC 2.2). Source: GJKR 2007, §4."""

from __future__ import annotations

from collections.abc import Callable

from enclave.crypto.curve import COMPRESSED_POINT_BYTES, SCALAR_BYTES, WIDE_SCALAR_BYTES, Curve, InvalidPoint
from policies.transcript import Tag, digest

PROOF_BYTES = COMPRESSED_POINT_BYTES + SCALAR_BYTES


def random_scalar(curve: Curve, random: Callable[[int], bytes]) -> int:
    """A scalar in `1..q-1`, from 64 random bytes."""
    while True:
        value = int.from_bytes(random(WIDE_SCALAR_BYTES), "big") % curve.q
        if value:
            return value


def prove(curve: Curve, x: int, context: bytes, random: Callable[[int], bytes]) -> bytes:
    """65 bytes `K ‖ z`: knowledge of `x` with `X = x·G`; `context` names prover and session."""
    k = random_scalar(curve, random)
    K = curve.generate(k)
    z = (k + _challenge(curve, curve.generate(x), K, context) * x) % curve.q
    return K + z.to_bytes(SCALAR_BYTES, "big")


def verify(curve: Curve, X: bytes, proof: bytes, context: bytes) -> bool:
    """Whether `proof` shows knowledge of the discrete logarithm of `X` in `context`. Never raises."""
    if len(proof) != PROOF_BYTES:
        return False
    K, z = proof[:COMPRESSED_POINT_BYTES], int.from_bytes(proof[COMPRESSED_POINT_BYTES:], "big")
    if not 0 < z < curve.q:
        return False
    try:
        c = _challenge(curve, X, K, context)
        return curve.generate(z) == curve.add([K, curve.multiply(X, c)])
    except InvalidPoint:
        return False


def _challenge(curve: Curve, X: bytes, K: bytes, context: bytes) -> int:
    return int.from_bytes(digest(Tag.KEYGEN_PROOF, curve.name.encode(), context, X, K), "big") % curve.q
