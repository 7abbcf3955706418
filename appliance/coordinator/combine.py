"""SPEC 4.6: signature shares to one verified ECDSA signature. Nothing leaves here that has not been verified."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import coincurve
from cryptography.hazmat.primitives.asymmetric import utils

from appliance.api.derivation import SECP256K1_ORDER as ORDER
from appliance.api.ecdsa import verifies
from appliance.api.models import SignatureValue
from appliance.coordinator.errors import CeremonyEnded
from enclave import wire


class CombineFailed(CeremonyEnded):
    """The shares do not make a signature. Nobody can be blamed for a wrong share."""

    def __init__(self, reason: str) -> None:
        super().__init__("combine", reason)


@lru_cache(maxsize=4096)
def lagrange_at_zero(j: int, committee: tuple[int, ...]) -> int:
    """`λ_j`, the Lagrange coefficient of `j` at 0 over `committee`, mod `q`."""
    numerator = denominator = 1
    for i in committee:
        if i != j:
            numerator = numerator * i % ORDER
            denominator = denominator * (i - j) % ORDER
    return numerator * pow(denominator, -1, ORDER) % ORDER


def combine(h: bytes, shares: Mapping[int, wire.ShareReport], public_key: bytes) -> SignatureValue:
    """The low-s signature on the 32 bytes `h` under `public_key` (33 bytes, the child key), from the shares of
    exactly one committee. Raises `CombineFailed`."""
    for index, share in shares.items():
        if share.index != index:
            raise CombineFailed(f"signer {index} gave the share of signer {share.index}")
    x, odd = _nonce_point(shares)
    r = x % ORDER
    committee = tuple(sorted(shares))
    s = sum(lagrange_at_zero(j, committee) * _scalar(shares[j].s) for j in committee) % ORDER
    if r == 0 or s == 0:
        raise CombineFailed("r or s is 0")
    recid = odd | (2 if x >= ORDER else 0)
    if s > ORDER // 2:
        s, recid = ORDER - s, recid ^ 1
    r_bytes, s_bytes = r.to_bytes(32, "big"), s.to_bytes(32, "big")
    if not verifies(public_key, h, r_bytes, s_bytes, recid):
        raise CombineFailed(_why_wrong(next(iter(shares.values())).r_point))
    return SignatureValue(
        r="0x" + r_bytes.hex(),
        s="0x" + s_bytes.hex(),
        recid=recid,
        der="0x" + utils.encode_dss_signature(r, s).hex(),
        rsv="0x" + (r_bytes + s_bytes + bytes([recid])).hex(),
        public_key="0x" + public_key.hex(),
        hash="0x" + h.hex(),
    )


def _nonce_point(shares: Mapping[int, wire.ShareReport]) -> tuple[int, int]:
    """`x(R')` and whether `y(R')` is odd, of the point that all shares name."""
    points = {share.r_point for share in shares.values()}
    if len(points) != 1:
        raise CombineFailed("the signers name different nonce points")
    point = points.pop()
    return int.from_bytes(point[1:], "big"), point[0] & 1


def _why_wrong(point: bytes) -> str:
    try:
        coincurve.PublicKey(point)
    except ValueError:
        return "the nonce point is not on the curve"
    return "the signature does not verify: a signer's share is wrong"


def _scalar(data: bytes) -> int:
    value = int.from_bytes(data, "big")
    if value >= ORDER:
        raise CombineFailed("a share is not below the group order")
    return value
