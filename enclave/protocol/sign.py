"""SPEC 4.2 to 4.5: one signature share from one presignature. Pure; the pool is the caller's (SPEC 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from enclave.crypto import prss
from enclave.crypto.curve import SCALAR_BYTES, Curve, compress
from enclave.errors import Refused
from enclave.wire import Authorization, encode
from policies.transcript import Tag, digest


class Presignature(msgspec.Struct, frozen=True):
    """One presignature, out of its pool: the share of the inverse nonce (a scalar), and `R` in 64 bytes. Secret."""

    inverse_share: int
    affine: bytes

    @property
    def R(self) -> bytes:
        """Compressed."""
        return compress(self.affine)

    def __repr__(self) -> str:
        return "Presignature(…)"


class SignatureShare(msgspec.Struct, frozen=True):
    """SPEC 4.5: `s_j` and the re-randomised point `R'` (33 bytes compressed), the same for all members."""

    s: int
    R: bytes


def message_scalar(h: bytes, curve: Curve) -> int:
    """The 32-byte hash as a scalar. Raises `Refused` for `h ≡ 0 mod q` (SPEC 4.2)."""
    value = int.from_bytes(h, "big") % curve.q
    if value == 0:
        raise Refused("hash", "the message hash is zero modulo the group order")
    return value


def online_share(
    curve: Curve,
    me: int,
    committee: tuple[int, ...],
    presignature: Presignature,
    authorizations: Sequence[Authorization],
    h: bytes,
    epsilon: int,
    key_share: int,
    online_seeds: Mapping[int, bytes],
) -> SignatureShare:
    """SPEC 4.4, 4.5 for member `me`: `share_under` the context of a single signature."""
    # SPEC 4.4
    ctx = digest(
        Tag.ONLINE_CONTEXT,
        *(encode(authorization) for authorization in authorizations),
        epsilon.to_bytes(SCALAR_BYTES, "big"),
        presignature.R,
    )
    return share_under(ctx, curve, me, committee, presignature, h, epsilon, key_share, online_seeds)


def batch_context(authorizations: Sequence[bytes], number: int, epsilon: int, R: bytes) -> bytes:
    """SPEC 4.9: `ctx_l` of item `number` (from 1) of a batch; `authorizations` are the encoded bodies, in order."""
    return digest(
        Tag.BATCH_CONTEXT, *authorizations, number.to_bytes(4, "big"), epsilon.to_bytes(SCALAR_BYTES, "big"), R
    )


def share_under(
    ctx: bytes,
    curve: Curve,
    me: int,
    committee: tuple[int, ...],
    presignature: Presignature,
    h: bytes,
    epsilon: int,
    key_share: int,
    online_seeds: Mapping[int, bytes],
) -> SignatureShare:
    """SPEC 4.4, 4.5 under a context of 32 bytes. `online_seeds[i]` is `o_{me,i}` for every other member `i`.

    Raises `Refused` where `δ`, `h` or `r` is zero; the presignature is spent all the same.
    """
    q = curve.q
    delta = int.from_bytes(digest(Tag.ONLINE_DELTA, ctx, b"0") + digest(Tag.ONLINE_DELTA, ctx, b"1"), "big") % q
    if delta == 0:
        raise Refused("delta", "the re-randomiser is zero")
    R = curve.multiply_affine(presignature.affine, delta)
    r = curve.x_mod_q(R)
    if r == 0:
        raise Refused("r", "r is zero")

    # SPEC 4.5
    message = message_scalar(h, curve)
    inverse = pow(delta, -1, q) * presignature.inverse_share
    s = inverse * (message + r * (key_share + epsilon)) + online_zero(committee, me, ctx, online_seeds)
    return SignatureShare(s % q, R)


def online_zero(committee: tuple[int, ...], me: int, ctx: bytes, seeds: Mapping[int, bytes]) -> int:
    """SPEC 4.5: the degree-2t share of zero over `o_ij` and `ctx`, not reduced."""
    others = [i for i in sorted(committee) if i != me]  # in the order of their pairs with `me`
    total = 0
    for weight, other in zip(prss.zero_weights(committee, me).weights, others, strict=True):
        total += weight * int.from_bytes(digest(Tag.ONLINE_ZERO, seeds[other], ctx), "big")
    return total
