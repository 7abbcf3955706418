"""Who signs requests: the clients of a policy, and how each of them signs."""

from __future__ import annotations

import base64
import re
from enum import StrEnum
from functools import cached_property
from typing import Annotated

import msgspec

CLIENT_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$(?!\n)"
ED25519_KEY_BYTES = 32
P256_POINT_BYTES = 65
_P256_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_P256_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")

Name = Annotated[str, msgspec.Meta(pattern=CLIENT_ID_PATTERN)]


class Algorithm(StrEnum):
    """How a client signs. A JWS names Ed25519 `Ed25519` or, as it used to be called, `EdDSA`."""

    ED25519 = "Ed25519"
    ES256 = "ES256"


# As what a JWS may name each.
ALGORITHM_NAMES = {Algorithm.ED25519: ("Ed25519", "EdDSA"), Algorithm.ES256: ("ES256",)}


class Client(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Who may ask. `id` is the `kid` of its requests.

    `public_key`: the 32-byte Ed25519 key, or for ES256 the 65-byte uncompressed P-256 point (`04 ‖ x ‖ y`),
    as base64url without padding or as plain base64.
    """

    id: Name
    alg: Algorithm
    public_key: Annotated[str, msgspec.Meta(max_length=128)]

    def __post_init__(self) -> None:
        if self.alg is Algorithm.ED25519:
            if len(self.key_bytes) != ED25519_KEY_BYTES:
                raise ValueError(f"client {self.id}: public_key is not a 32-byte Ed25519 key")
        elif not _is_p256_point(self.key_bytes):
            raise ValueError(f"client {self.id}: public_key is not a 65-byte uncompressed P-256 point")

    @cached_property
    def key_bytes(self) -> bytes:
        """The raw 32-byte Ed25519 key or the 65-byte P-256 point."""
        try:
            return _decode_key(self.public_key)
        except ValueError as error:
            raise ValueError(f"client {self.id}: public_key is {error}") from None


def _decode_key(text: str) -> bytes:
    """Canonical base64url without padding, or canonical base64. Raises `ValueError`."""
    plain = text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4)
    if not _BASE64.fullmatch(plain):
        raise ValueError("not base64")
    data = base64.b64decode(plain, validate=True)
    if text not in (base64.urlsafe_b64encode(data).rstrip(b"=").decode(), base64.b64encode(data).decode()):
        raise ValueError("not canonical base64")
    return data


def _is_p256_point(point: bytes) -> bool:
    if len(point) != P256_POINT_BYTES or point[0] != 4:
        return False
    x, y = int.from_bytes(point[1:33], "big"), int.from_bytes(point[33:], "big")
    return max(x, y) < _P256_P and (y * y - (x * x * x - 3 * x + _P256_B)) % _P256_P == 0
