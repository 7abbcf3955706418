"""Many points at once: `k_l·G` for a whole batch, and linear relations between the members' points.

One library call per operation over preallocated buffers, no Python objects per point. Points travel as `x ‖ y`
(64 bytes): parsing a compressed point costs a square root, fifteen times as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coincurve._libsecp256k1 import ffi, lib

from enclave.crypto.curve import (
    _EC_UNCOMPRESSED,
    _UNCOMPRESSED_BYTES,
    AFFINE_POINT_BYTES,
    SCALAR_BYTES,
    InvalidPoint,
    Secp256k1,
)

MAX_REPEATS = 16


def generate_many(curve: Secp256k1, scalars: bytes) -> bytes:
    """`k_l·G` for `m` scalars (32 bytes each, concatenated): `m` affine points, 64 bytes each.

    Raises `InvalidPoint` where a scalar is zero (its number is in the message).
    """
    m = len(scalars) // SCALAR_BYTES
    out = bytearray(m * AFFINE_POINT_BYTES)
    key = ffi.new("secp256k1_pubkey *")
    encoded = ffi.new("unsigned char[65]")
    size = ffi.new("size_t *")
    source = ffi.from_buffer("unsigned char[]", scalars)
    affine = ffi.buffer(encoded)
    context, create, serialize = (
        curve.context,
        lib.secp256k1_ec_pubkey_create,
        lib.secp256k1_ec_pubkey_serialize,
    )
    position = 0
    for l in range(m):
        if not create(context, key, source + l * SCALAR_BYTES):
            raise InvalidPoint(f"scalar {l} is zero")
        size[0] = _UNCOMPRESSED_BYTES
        serialize(context, encoded, size, key, _EC_UNCOMPRESSED)
        out[position : position + AFFINE_POINT_BYTES] = affine[1:_UNCOMPRESSED_BYTES]
        position += AFFINE_POINT_BYTES
    return bytes(out)


class PointRow:
    """One member's `m` points, parsed and known to be on the curve."""

    def __init__(self, curve: Secp256k1, points: bytes) -> None:
        """`points`: `m` affine points of 64 bytes. Raises `InvalidPoint` for one that is not on the curve."""
        self.m = len(points) // AFFINE_POINT_BYTES
        self.keys: Any = ffi.new("secp256k1_pubkey[]", self.m)
        encoded = ffi.new("unsigned char[65]")
        encoded[0] = 4
        affine = ffi.buffer(encoded)
        keys, context, parse = self.keys, curve.context, lib.secp256k1_ec_pubkey_parse
        for l in range(self.m):
            affine[1:_UNCOMPRESSED_BYTES] = points[l * AFFINE_POINT_BYTES : (l + 1) * AFFINE_POINT_BYTES]
            if not parse(context, keys + l, encoded, _UNCOMPRESSED_BYTES):
                raise InvalidPoint(f"point {l} is not on {curve.name}")


def relation_fails(curve: Secp256k1, rows: Mapping[int, PointRow], terms: Mapping[int, int]) -> int | None:
    """The number of the first point for which `Σ c_j·P_j,l ≠ 0`, or None where the relation holds for all.

    `terms`: integer coefficients `c_j`, both signs among them. Checked point by point, no random combination.
    """
    m = next(iter(rows.values())).m
    left = _summands(curve, rows, {j: c for j, c in terms.items() if c > 0}, m)
    right = _summands(curve, rows, {j: -c for j, c in terms.items() if c < 0}, m)
    one, other = ffi.new("secp256k1_pubkey *"), ffi.new("secp256k1_pubkey *")
    left_pointers, right_pointers = (
        ffi.new("secp256k1_pubkey *[]", len(left)),
        ffi.new("secp256k1_pubkey *[]", len(right)),
    )
    context, combine, compare = curve.context, lib.secp256k1_ec_pubkey_combine, lib.secp256k1_ec_pubkey_cmp
    left_count, right_count = len(left), len(right)
    left_only, right_only = left_count == 1, right_count == 1
    for l in range(m):
        for place, keys in enumerate(left):
            left_pointers[place] = keys + l
        for place, keys in enumerate(right):
            right_pointers[place] = keys + l
        # `combine` says 0 for the identity; then both sides must be the identity.
        left_ok = left_only or combine(context, one, left_pointers, left_count)
        right_ok = right_only or combine(context, other, right_pointers, right_count)
        if left_ok and right_ok:
            a = left_pointers[0] if left_only else one
            b = right_pointers[0] if right_only else other
            if compare(context, a, b):
                return l
        elif left_ok or right_ok:
            return l
    return None


def combine_rows(curve: Secp256k1, rows: Mapping[int, PointRow], terms: Mapping[int, int]) -> bytes:
    """`Σ c_j·P_j,l` for every `l`, integer coefficients: `m` affine points of 64 bytes.

    Raises `InvalidPoint` where a sum is the identity.
    """
    m = next(iter(rows.values())).m
    sources = _summands(curve, rows, {j: c for j, c in terms.items() if c > 0}, m)
    sources += _summands(curve, rows, {j: -c for j, c in terms.items() if c < 0}, m, negated=True)
    pointers = ffi.new("secp256k1_pubkey *[]", len(sources))
    total = ffi.new("secp256k1_pubkey *")
    encoded, size = ffi.new("unsigned char[65]"), ffi.new("size_t *")
    affine = ffi.buffer(encoded)
    out = bytearray(m * AFFINE_POINT_BYTES)
    context, combine, serialize, count = (
        curve.context,
        lib.secp256k1_ec_pubkey_combine,
        lib.secp256k1_ec_pubkey_serialize,
        len(sources),
    )
    for l in range(m):
        for place, keys in enumerate(sources):
            pointers[place] = keys + l
        if not combine(context, total, pointers, count):
            raise InvalidPoint(f"combined point {l} is the identity")
        size[0] = _UNCOMPRESSED_BYTES
        serialize(context, encoded, size, total, _EC_UNCOMPRESSED)
        out[l * AFFINE_POINT_BYTES : (l + 1) * AFFINE_POINT_BYTES] = affine[1:_UNCOMPRESSED_BYTES]
    return bytes(out)


def _summands(
    curve: Secp256k1, rows: Mapping[int, PointRow], terms: Mapping[int, int], m: int, *, negated: bool = False
) -> list[Any]:
    """Rows whose plain sum is `Σ c_j·P_j`, all `c_j > 0`; their negatives where `negated`.

    A small coefficient repeats its row: a few additions beat a multiplication. A large one (far-apart committee
    members) is multiplied in; coefficients are public.
    """
    summands = []
    for j, c in sorted(terms.items()):
        keys = rows[j].keys
        if negated or c > MAX_REPEATS:
            keys = ffi.new("secp256k1_pubkey[]", m)
            ffi.memmove(keys, rows[j].keys, ffi.sizeof("secp256k1_pubkey") * m)
        if negated:
            for l in range(m):
                lib.secp256k1_ec_pubkey_negate(curve.context, keys + l)
        if c > MAX_REPEATS:
            factor = c.to_bytes(SCALAR_BYTES, "big")
            for l in range(m):
                lib.secp256k1_ec_pubkey_tweak_mul(curve.context, keys + l, factor)
        summands += [keys] * (1 if c > MAX_REPEATS else c)
    return summands
