"""SPEC 3: a batch of `m` KU25 presignatures for one committee. Rounds as in the specification.

Columns (one value for each presignature) are plain lists of integers; every step is one pass over columns, and
values are reduced once, at its end. What a member sends is computed by `compute_…` from its own material and the bodies
before, so that blame can compute it again (SPEC 3.12); what it checks is in `verify_…`, of public values alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from enclave.crypto import bulk, polynomials, prss
from enclave.crypto.curve import AFFINE_POINT_BYTES, SCALAR_BYTES, InvalidPoint, Secp256k1
from enclave.errors import PeerFault
from enclave.protocol.presign_material import Column, Material, SubSeeds, commitments, expand, groups_in
from enclave.protocol.session import RoundMessage, Session
from enclave.wire import MAX_BATCH, Bytes32
from policies.transcript import Tag, digest

Scalars = Annotated[bytes, msgspec.Meta(max_length=MAX_BATCH * SCALAR_BYTES)]
Points = Annotated[bytes, msgspec.Meta(max_length=MAX_BATCH * AFFINE_POINT_BYTES)]


class Products(RoundMessage, frozen=True):
    """3.2, 3.3: commitments to the sender's sub-seeds; `e` shares for `w_l` and for `μ_l`, m scalars each."""

    commitments: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=4096)]
    e_w: Scalars
    e_mu: Scalars


class CheckProducts(RoundMessage, frozen=True):
    """3.4: `e` shares for `τ_l`, m scalars."""

    e_tau: Scalars


class Challenges(RoundMessage, frozen=True):
    """3.5: the shares of `ρ` and `β`."""

    rho: Bytes32
    beta: Bytes32


class Openings(RoundMessage, frozen=True):
    """3.6: the share of `T`, the shares of `w_l` (m scalars), and `R_l` (m affine points of 64 bytes)."""

    T: Bytes32
    w: Scalars
    R: Points


class Confirmation(RoundMessage, frozen=True):
    """3.9: digest of the batch."""

    digest: Bytes32


ROUNDS = (Products, CheckProducts, Challenges, Openings, Confirmation)


@dataclass(frozen=True, repr=False)
class Batch:
    """The result: `m` shares of inverse nonces (32 bytes each) and `m` nonce points (64 bytes each). Secret."""

    sid: bytes
    inverse_shares: bytes
    points: bytes


async def presign(session: Session, curve: Secp256k1, t: int, m: int, sub_seeds: SubSeeds) -> Batch:
    """Run SPEC 3.2 to 3.9 for committee `session.members`; the session's context is `sid`."""
    q, C = curve.q, session.members
    own = expand(C, t, session.me, m, sub_seeds)

    # SPEC 3.3
    session.broadcast(compute_products(own, sub_seeds, q))
    products = await session.gather(Products)
    verify_commitments(C, t, products)
    w, mu = compute_first_shares(C, m, own, products, q)

    # SPEC 3.4
    session.broadcast(compute_check_products(own, mu, q))
    tau = compute_check_shares(C, m, own, await session.gather(CheckProducts), q)

    # SPEC 3.5: opened only now, when everybody's errors are fixed.
    session.broadcast(compute_challenges(own))
    rho, beta = verify_challenges(t, await session.gather(Challenges), q)

    # SPEC 3.6
    session.broadcast(compute_openings(curve, own, tau, w, rho, beta))
    openings = await session.gather(Openings)

    # SPEC 3.7, 3.8
    w_open = verify_products(C, t, m, openings, q)
    points = verify_points(curve, C, t, m, openings)
    inverse_shares = compute_inverse_shares(C, t, own, w_open, q)

    # SPEC 3.9
    agreement = compute_agreement(session.context, m, rho, beta, w_open, points)
    session.broadcast(Confirmation(agreement))
    if any(theirs.digest != agreement for theirs in (await session.gather(Confirmation)).values()):
        raise PeerFault("3.9", "members computed different batches")
    return Batch(session.context, inverse_shares, points)


def compute_products(own: Material, sub_seeds: SubSeeds, q: int) -> Products:
    """SPEC 3.3: the member's body of the first round."""
    k, a, masks, zeros = own.k, own.a, own.masks, own.zeros
    e_w = [(x * y + mask + zero) % q for x, y, mask, zero in zip(k, a, masks[0], zeros[0], strict=True)]
    e_mu = [(own.rho * y + mask + zero) % q for y, mask, zero in zip(a, masks[1], zeros[1], strict=True)]
    return Products(commitments(sub_seeds), _pack(e_w), _pack(e_mu))


def compute_first_shares(
    C: tuple[int, ...], m: int, own: Material, products: Mapping[int, Products], q: int
) -> tuple[Column, Column]:
    """SPEC 3.3: the member's shares of all `w_l` and `μ_l`."""
    w = _product_shares(C, {j: unpack(j, products[j].e_w, m, q, "3.3") for j in C}, own.masks[0], q)
    mu = _product_shares(C, {j: unpack(j, products[j].e_mu, m, q, "3.3") for j in C}, own.masks[1], q)
    return w, mu


def compute_check_products(own: Material, mu: Column, q: int) -> CheckProducts:
    """SPEC 3.4: the member's body of the second round."""
    columns = zip(mu, own.k, own.masks[2], own.zeros[2], strict=True)
    return CheckProducts(_pack([(x * y + mask + zero) % q for x, y, mask, zero in columns]))


def compute_check_shares(
    C: tuple[int, ...], m: int, own: Material, checks: Mapping[int, CheckProducts], q: int
) -> Column:
    """SPEC 3.4: the member's shares of all `τ_l`."""
    return _product_shares(C, {j: unpack(j, checks[j].e_tau, m, q, "3.4") for j in C}, own.masks[2], q)


def compute_challenges(own: Material) -> Challenges:
    """SPEC 3.5: the member's body of the third round."""
    return Challenges(own.rho.to_bytes(SCALAR_BYTES, "big"), own.beta.to_bytes(SCALAR_BYTES, "big"))


def compute_openings(curve: Secp256k1, own: Material, tau: Column, w: Column, rho: int, beta: int) -> Openings:
    """SPEC 3.6: the member's body of the fourth round."""
    T = compute_check(tau, w, rho, beta, curve.q)
    return Openings(T.to_bytes(SCALAR_BYTES, "big"), _pack(w), bulk.generate_many(curve, _pack(own.k)))


def compute_inverse_shares(C: tuple[int, ...], t: int, own: Material, w_open: Column, q: int) -> bytes:
    """SPEC 3.8: the member's shares of all inverse nonces, 32 bytes each."""
    D = polynomials.lagrange(C[: t + 1]).denominator
    inverses = _invert_all([D * value for value in w_open], q)
    return _pack([inverse * value % q for inverse, value in zip(inverses, own.a, strict=True)])


def compute_agreement(sid: bytes, m: int, rho: int, beta: int, w_open: Column, points: bytes) -> bytes:
    """SPEC 3.9: the digest that every member confirms. A function of public values alone."""
    return digest(
        Tag.PRESIGN_AGREEMENT,
        sid,
        m.to_bytes(4, "big"),
        rho.to_bytes(SCALAR_BYTES, "big"),
        beta.to_bytes(SCALAR_BYTES, "big"),
        _pack(w_open),
        points,
    )


def verify_challenges(t: int, challenges: Mapping[int, Challenges], q: int) -> tuple[int, int]:
    """SPEC 3.5: `ρ` and `β`, on degree t."""
    rho = _open({j: scalar(j, c.rho, q, "3.5") for j, c in challenges.items()}, t, q, "3.5", "ρ")
    beta = _open({j: scalar(j, c.beta, q, "3.5") for j, c in challenges.items()}, t, q, "3.5", "β")
    return rho, beta


def verify_commitments(C: tuple[int, ...], t: int, products: Mapping[int, Products]) -> None:
    """SPEC 3.3: members of one group committed to the same sub-seed. Raises `PeerFault` naming sender or group."""
    seen: dict[tuple[str, tuple[int, ...]], bytes] = {}
    for j, message in products.items():
        groups = groups_in(C, t, j)
        if len(message.commitments) != len(groups):
            raise PeerFault("3.3", "a commitment for each group, no more and no less", (j,))
        for (kind, group), value in zip(groups, message.commitments, strict=True):
            if seen.setdefault((kind, group), value) != value:
                raise PeerFault("3.3", f"members of {kind} {group} hold different sub-seeds", subset=group)


def compute_check(tau: Column, w: Column, rho: int, beta: int, q: int) -> int:
    """SPEC 3.6: the share of `T = Σ (τ_l − ρ·w_l)·β^l`, by Horner from the last presignature down."""
    total = 0
    for tau_l, w_l in zip(reversed(tau), reversed(w), strict=True):
        total = (total + tau_l - rho * w_l) * beta % q
    return total


def verify_products(C: tuple[int, ...], t: int, m: int, openings: Mapping[int, Openings], q: int) -> Column:
    """SPEC 3.7 for `T` and `w_l`: the opened `w_l`, none of them zero."""
    T = {j: scalar(j, message.T, q, "3.6") for j, message in openings.items()}
    columns = {j: unpack(j, message.w, m, q, "3.6") for j, message in openings.items()}
    if _open(T, t, q, "3.7", "T") != 0:
        raise PeerFault("3.7", "T is not zero: a product was manipulated")
    for relation in polynomials.degree_relations(C, t):
        sums = _weighted(relation, columns)
        if any(value % q for value in sums):
            raise PeerFault("3.7", "w is not on degree t")
    lagrange = polynomials.lagrange(C[: t + 1])
    inverse = pow(lagrange.denominator, -1, q)
    w = [value * inverse % q for value in _weighted(lagrange.numerators, columns)]
    if not all(w):
        raise PeerFault("3.7", "a w is zero")
    return w


def verify_points(curve: Secp256k1, C: tuple[int, ...], t: int, m: int, openings: Mapping[int, Openings]) -> bytes:
    """SPEC 3.7, 3.8 for `R_l`: every point on degree t, none the identity; returns `m` points of 64 bytes."""
    rows = {}
    for j, message in openings.items():
        if len(message.R) != m * AFFINE_POINT_BYTES:
            raise PeerFault("3.6", f"{m} points expected", (j,))
        try:
            rows[j] = bulk.PointRow(curve, message.R)
        except InvalidPoint as error:
            raise PeerFault("3.6", str(error), (j,)) from None
    for relation in polynomials.degree_relations(C, t):
        if bulk.relation_fails(curve, rows, relation) is not None:
            raise PeerFault("3.7", "R is not on degree t")
    try:
        return bulk.combine_rows(curve, {j: rows[j] for j in C[: t + 1]}, polynomials.lagrange(C[: t + 1]).numerators)
    except InvalidPoint as error:
        raise PeerFault("3.7", str(error)) from None


def _product_shares(C: tuple[int, ...], e: dict[int, Column], mask: Column, q: int) -> Column:
    """SPEC 3.3: `e(0) − mask`, with `e(0)` interpolated over all `2t+1` members."""
    lagrange = polynomials.lagrange(C)
    sums = _weighted(lagrange.numerators, e)
    if lagrange.denominator == 1:
        return [(total - value) % q for total, value in zip(sums, mask, strict=True)]
    inverse = pow(lagrange.denominator, -1, q)
    return [(total * inverse - value) % q for total, value in zip(sums, mask, strict=True)]


def _weighted(coefficients: Mapping[int, int], columns: dict[int, Column]) -> Column:
    members = sorted(coefficients)
    return prss.weighted_sums(prss.Weights(tuple(coefficients[j] for j in members)), [columns[j] for j in members])


def _open(shares: dict[int, int], t: int, q: int, step: str, what: str) -> int:
    if not polynomials.has_degree(shares, t, q):
        raise PeerFault(step, f"{what} is not on degree t")
    return polynomials.interpolate(shares, q)


def _invert_all(values: Sequence[int], q: int) -> Column:
    """All inverses mod `q` with one inversion (Montgomery's trick). No value may be zero."""
    prefix, running = [], 1
    for value in values:
        prefix.append(running)
        running = running * value % q
    inverse = pow(running, -1, q)
    out = [0] * len(values)
    for l in range(len(values) - 1, -1, -1):
        out[l] = inverse * prefix[l] % q
        inverse = inverse * values[l] % q
    return out


def _pack(column: Column) -> bytes:
    return b"".join([value.to_bytes(SCALAR_BYTES, "big") for value in column])


def unpack(sender: int, data: bytes, m: int, q: int, step: str) -> Column:
    if len(data) != m * SCALAR_BYTES:
        raise PeerFault(step, f"{m} scalars expected", (sender,))
    column = prss.elements(data)
    if max(column) >= q:
        raise PeerFault(step, "a scalar is not below q", (sender,))
    return column


def scalar(sender: int, data: bytes, q: int, step: str) -> int:
    value = int.from_bytes(data, "big")
    if value >= q:
        raise PeerFault(step, "a scalar is not below q", (sender,))
    return value
