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
        self._curve, self._negated = curve, None
        encoded = ffi.new("unsigned char[65]")
        encoded[0] = 4
        affine = ffi.buffer(encoded)
        keys, context, parse = self.keys, curve.context, lib.secp256k1_ec_pubkey_parse
        for l in range(self.m):
            affine[1:_UNCOMPRESSED_BYTES] = points[l * AFFINE_POINT_BYTES : (l + 1) * AFFINE_POINT_BYTES]
            if not parse(context, keys + l, encoded, _UNCOMPRESSED_BYTES):
                raise InvalidPoint(f"point {l} is not on {curve.name}")

    def copy(self) -> Any:
        """The points, to be changed."""
        keys = ffi.new("secp256k1_pubkey[]", self.m)
        ffi.memmove(keys, self.keys, ffi.sizeof("secp256k1_pubkey") * self.m)
        return keys

    def negated(self) -> Any:
        """The points' negatives, made once."""
        if self._negated is None:
            keys, context, negate = self.copy(), self._curve.context, lib.secp256k1_ec_pubkey_negate
            for l in range(self.m):
                negate(context, keys + l)
            self._negated = keys
        return self._negated

    @property
    def has_negatives(self) -> bool:
        """Whether they have been made."""
        return self._negated is not None


def relation_fails(curve: Secp256k1, rows: Mapping[int, PointRow], terms: Mapping[int, int]) -> int | None:
    """The number of the first point for which `Σ c_j·P_j,l ≠ 0`, or None where the relation holds for all.

    `terms`: integer coefficients `c_j`. Checked point by point, no random combination. The library says 0 for the
    identity before it works out a sum's coordinates, so a relation that holds costs additions and no inversion.
    """
    m = next(iter(rows.values())).m
    # The relation or its negative: whichever needs fewer rows negated.
    new = [sum(not rows[j].has_negatives for j, c in terms.items() if sign * c < 0) for sign in (1, -1)]
    summands = _summands(curve, rows, terms if new[0] <= new[1] else {j: -c for j, c in terms.items()}, m)
    pointers, count = ffi.new("secp256k1_pubkey *[]", len(summands)), len(summands)
    total, context, combine = ffi.new("secp256k1_pubkey *"), curve.context, lib.secp256k1_ec_pubkey_combine
    for l in range(m):
        for place, keys in enumerate(summands):
            pointers[place] = keys + l
        if combine(context, total, pointers, count):
            return l
    return None


def combine_rows(curve: Secp256k1, rows: Mapping[int, PointRow], terms: Mapping[int, int]) -> bytes:
    """`Σ c_j·P_j,l` for every `l`, integer coefficients: `m` affine points of 64 bytes.

    Raises `InvalidPoint` where a sum is the identity.
    """
    m = next(iter(rows.values())).m
    sources = _summands(curve, rows, terms, m)
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


def _summands(curve: Secp256k1, rows: Mapping[int, PointRow], terms: Mapping[int, int], m: int) -> list[Any]:
    """Rows of points whose plain sum is `Σ c_j·P_j`.

    A small coefficient repeats its row: a few additions beat a multiplication. A large one (far-apart committee
    members) is multiplied in; coefficients are public.
    """
    summands = []
    for j, c in sorted(terms.items()):
        if abs(c) <= MAX_REPEATS:
            summands += [rows[j].keys if c > 0 else rows[j].negated()] * abs(c)
            continue
        keys, factor = rows[j].copy(), (c % curve.q).to_bytes(SCALAR_BYTES, "big")
        for l in range(m):
            lib.secp256k1_ec_pubkey_tweak_mul(curve.context, keys + l, factor)
        summands.append(keys)
    return summands
