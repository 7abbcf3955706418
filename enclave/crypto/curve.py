"""Groups of prime order. Every protocol routine takes a `Curve`; secp256k1 is the first.

Points travel compressed (33 bytes), scalars are Python integers in `0..q-1` or 32 bytes big-endian. The identity
has no encoding: where a result could be the identity, the function says what happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from coincurve._libsecp256k1 import ffi, lib

from policies.errors import CallerError

SCALAR_BYTES = 32
WIDE_SCALAR_BYTES = 64
COMPRESSED_POINT_BYTES = 33
AFFINE_POINT_BYTES = 64
_UNCOMPRESSED_BYTES = 65
_UNCOMPRESSED = b"\x04"
_EC_COMPRESSED = 258
_EC_UNCOMPRESSED = 2
_CONTEXT_NONE = 1


class InvalidPoint(CallerError):
    """Bytes that are not a point of the curve, or a result that is the identity where none may be."""


class Curve(Protocol):
    """What a protocol needs of a group of prime order `q`."""

    @property
    def name(self) -> Literal["secp256k1"]: ...

    @property
    def q(self) -> int: ...

    def generate(self, scalar: int) -> bytes:
        """`scalar·G`, compressed; `scalar` in `1..q-1`. Constant-time in the scalar."""
        ...

    def multiply(self, point: bytes, scalar: int) -> bytes:
        """`scalar·point`, compressed; variable time, so for public values. Raises `InvalidPoint` on identity."""
        ...

    def multiply_affine(self, affine: bytes, scalar: int) -> bytes:
        """`multiply` for a point in 64 bytes `x ‖ y`, which spares it a square root. Raises `InvalidPoint`."""
        ...

    def add(self, points: Sequence[bytes]) -> bytes:
        """The sum of at least one compressed point. Raises `InvalidPoint` if it is the identity."""
        ...

    def check_point(self, point: bytes) -> None:
        """Raises `InvalidPoint` unless `point` is a canonical compressed point (never the identity)."""
        ...

    def x_mod_q(self, point: bytes) -> int:
        """`x(point) mod q` of a compressed point that is known to be on the curve."""
        ...


class Secp256k1:
    """secp256k1 over libsecp256k1."""

    name: Literal["secp256k1"] = "secp256k1"
    q = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

    def __init__(self) -> None:
        self.context = lib.secp256k1_context_create(_CONTEXT_NONE)

    def randomize(self, randomness: bytes) -> None:
        """Blind the generator's multiplications with 32 random bytes. Results stay the same."""
        lib.secp256k1_context_randomize(self.context, randomness)

    def generate(self, scalar: int) -> bytes:
        key = ffi.new("secp256k1_pubkey *")
        if not lib.secp256k1_ec_pubkey_create(self.context, key, scalar.to_bytes(SCALAR_BYTES, "big")):
            raise InvalidPoint("0·G is the identity")
        return self.serialize(key)

    def multiply(self, point: bytes, scalar: int) -> bytes:
        return self._multiply(self.parse(point), scalar)

    def multiply_affine(self, affine: bytes, scalar: int) -> bytes:
        return self._multiply(self._parse(_UNCOMPRESSED + affine, _UNCOMPRESSED_BYTES), scalar)

    def _multiply(self, key: Any, scalar: int) -> bytes:
        data = (scalar % self.q).to_bytes(SCALAR_BYTES, "big")
        if not lib.secp256k1_ec_pubkey_tweak_mul(self.context, key, data):
            raise InvalidPoint("0·P is the identity")
        return self.serialize(key)

    def add(self, points: Sequence[bytes]) -> bytes:
        keys = [self.parse(point) for point in points]
        total = ffi.new("secp256k1_pubkey *")
        pointers = ffi.new("secp256k1_pubkey *[]", keys)
        if not lib.secp256k1_ec_pubkey_combine(self.context, total, pointers, len(keys)):
            raise InvalidPoint("the sum is the identity")
        return self.serialize(total)

    def check_point(self, point: bytes) -> None:
        self.parse(point)

    def x_mod_q(self, point: bytes) -> int:
        return int.from_bytes(point[1:], "big") % self.q

    def parse(self, point: bytes) -> Any:
        """The library's form of a compressed point. Raises `InvalidPoint`."""
        return self._parse(point, COMPRESSED_POINT_BYTES)

    def _parse(self, point: bytes, size: int) -> Any:
        key = ffi.new("secp256k1_pubkey *")
        if len(point) != size or not lib.secp256k1_ec_pubkey_parse(self.context, key, point, size):
            raise InvalidPoint(f"not a point of {self.name} in {size} bytes")
        return key

    def serialize(self, key: Any) -> bytes:
        """Compressed encoding of the library's form."""
        out = ffi.new("unsigned char[33]")
        size = ffi.new("size_t *", COMPRESSED_POINT_BYTES)
        lib.secp256k1_ec_pubkey_serialize(self.context, out, size, key, _EC_COMPRESSED)
        return bytes(ffi.buffer(out))


SECP256K1 = Secp256k1()


def compress(affine: bytes) -> bytes:
    """Compressed form of 64 bytes `x ‖ y`. The point must be known to be on the curve."""
    return bytes([2 + (affine[63] & 1)]) + affine[:32]
