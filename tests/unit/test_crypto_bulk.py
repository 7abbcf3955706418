"""The curve and points in bulk, against coincurve's own interface and OpenSSL."""

from __future__ import annotations

import hashlib

import pytest
from coincurve import PublicKey
from cryptography.hazmat.primitives.asymmetric import ec

from enclave.crypto import bulk, polynomials
from enclave.crypto.curve import SECP256K1, InvalidPoint, compress

Q = SECP256K1.q
P = 2**256 - 2**32 - 977
SCALARS = [1, 2, 3, Q - 1, Q - 2, Q // 2, 2**255, int.from_bytes(hashlib.sha256(b"x").digest(), "big")]


def pack(scalars: list[int]) -> bytes:
    return b"".join(s.to_bytes(32, "big") for s in scalars)


def openssl(scalar: int) -> bytes:
    numbers = ec.derive_private_key(scalar, ec.SECP256K1()).public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def row(*scalars: int) -> bulk.PointRow:
    return bulk.PointRow(SECP256K1, bulk.generate_many(SECP256K1, pack(list(scalars))))


@pytest.mark.parametrize("scalar", SCALARS)
def test_generate_is_openssls(scalar: int) -> None:
    assert SECP256K1.generate(scalar) == compress(openssl(scalar))


def test_generate_many_is_openssls() -> None:
    assert bulk.generate_many(SECP256K1, pack(SCALARS)) == b"".join(map(openssl, SCALARS))
    assert bulk.generate_many(SECP256K1, b"") == b""


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [0, Q, 2**256 - 1])
def test_generate_many_refuses_scalars_without_a_point(place: int, bad: int) -> None:
    scalars = [5, 6, 7]
    scalars[place] = bad
    with pytest.raises(InvalidPoint, match=f"scalar {place} "):
        bulk.generate_many(SECP256K1, pack(scalars))


@pytest.mark.parametrize("scalar", SCALARS)
def test_multiply_and_add_are_coincurves(scalar: int) -> None:
    point = SECP256K1.generate(77)
    assert SECP256K1.multiply(point, scalar) == PublicKey(point).multiply(scalar.to_bytes(32, "big")).format()
    affine = PublicKey(point).format(compressed=False)[1:]
    assert SECP256K1.multiply_affine(affine, scalar) == SECP256K1.multiply(point, scalar)
    if scalar != Q - 77:
        expected = PublicKey.combine_keys([PublicKey(point), PublicKey(SECP256K1.generate(scalar))]).format()
        assert SECP256K1.add([point, SECP256K1.generate(scalar)]) == expected


def test_the_identity_is_refused_wherever_it_could_come_from() -> None:
    G = SECP256K1.generate(1)
    with pytest.raises(InvalidPoint):
        SECP256K1.generate(0)
    for zero in (0, Q, -Q):
        with pytest.raises(InvalidPoint):
            SECP256K1.multiply(G, zero)
    with pytest.raises(InvalidPoint):
        SECP256K1.add([G, SECP256K1.generate(Q - 1)])
    assert SECP256K1.add([G, SECP256K1.generate(Q - 1), G]) == G


@pytest.mark.parametrize(
    "point",
    [
        b"",
        bytes(33),
        b"\x02" + bytes(32),
        b"\x00" + SECP256K1.generate(1)[1:],
        b"\x04" + SECP256K1.generate(1)[1:],
        b"\x02" + P.to_bytes(32, "big"),
        b"\x02" + (P + 1).to_bytes(32, "big"),
        b"\x02" + (5).to_bytes(32, "big"),
        SECP256K1.generate(1)[:-1],
        SECP256K1.generate(1) + b"\0",
        PublicKey(SECP256K1.generate(1)).format(compressed=False),
    ],
)
def test_only_canonical_compressed_points_are_points(point: bytes) -> None:
    for use in (
        lambda: SECP256K1.check_point(point),
        lambda: SECP256K1.add([point]),
        lambda: SECP256K1.multiply(point, 2),
    ):
        with pytest.raises(InvalidPoint):
            use()


def test_x_is_reduced() -> None:
    """There is a point whose x lies between q and p: the reason for a recovery id of 2 or 3."""
    x = next(x for x in range(Q, Q + 100) if pow(x**3 + 7, (P - 1) // 2, P) == 1)
    assert SECP256K1.x_mod_q(b"\x02" + x.to_bytes(32, "big")) == x - Q


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "affine",
    [
        bytes(64),
        b"\xff" * 64,
        openssl(5)[:63] + bytes([openssl(5)[63] ^ 1]),
        (5).to_bytes(32, "big") + (1).to_bytes(32, "big"),
        (1).to_bytes(32, "big") + (P + 1).to_bytes(32, "big"),
    ],
)
def test_a_row_with_one_bad_point_is_refused(affine: bytes, place: int) -> None:
    points = [openssl(2), openssl(3), openssl(4)]
    points[place] = affine
    with pytest.raises(InvalidPoint, match=f"point {place} "):
        bulk.PointRow(SECP256K1, b"".join(points))
    with pytest.raises(InvalidPoint):
        SECP256K1.multiply_affine(affine, 2)


@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
@pytest.mark.parametrize("member", [1, 2, 4])
def test_a_relation_is_checked_point_by_point(wrong: int | None, member: int) -> None:
    """Shares of f = a + bx at 1, 2, 4, and the relation −2·y_1 + 3·y_2 − y_4 = 0."""
    shares = {j: [a + b * j for a, b in ((5, 7), (11, 1), (3, 9))] for j in (1, 2, 4)}
    if wrong is not None:
        shares[member][wrong] += 1
    rows = {j: row(*each) for j, each in shares.items()}
    assert bulk.relation_fails(SECP256K1, rows, {1: -2, 2: 3, 4: -1}) == wrong


def test_relations_through_the_identity() -> None:
    """Both sides the identity: it holds. One side alone: it does not."""
    rows = {1: row(5), 2: row(Q - 5), 3: row(7), 4: row(Q - 7), 5: row(8)}
    assert bulk.relation_fails(SECP256K1, rows, {1: 1, 2: 1, 3: -1, 4: -1}) is None
    assert bulk.relation_fails(SECP256K1, rows, {1: 1, 2: 1, 3: -1, 5: -1}) == 0
    assert bulk.relation_fails(SECP256K1, rows, {3: 1, 5: 1, 1: -1, 2: -1}) == 0
    assert bulk.relation_fails(SECP256K1, rows, {1: 1, 2: 1, 3: -1}) == 0


def test_one_term_a_side() -> None:
    assert bulk.relation_fails(SECP256K1, {1: row(5, 6), 2: row(5, 6)}, {1: 1, 2: -1}) is None
    assert bulk.relation_fails(SECP256K1, {1: row(5, 6), 2: row(5, 7)}, {1: 1, 2: -1}) == 1


def test_combined_rows_are_the_combination() -> None:
    rows = {1: row(5, 6), 2: row(7, 8), 3: row(9, 10)}
    expected = openssl(3 * 5 - 3 * 7 + 9) + openssl(3 * 6 - 3 * 8 + 10)
    assert bulk.combine_rows(SECP256K1, rows, {1: 3, 2: -3, 3: 1}) == expected
    # The rows are as before: a negation works on a copy.
    assert bulk.combine_rows(SECP256K1, rows, {1: 3, 2: -3, 3: 1}) == expected


def test_a_combination_that_is_the_identity_is_refused() -> None:
    with pytest.raises(InvalidPoint, match="point 1 is the identity"):
        bulk.combine_rows(SECP256K1, {1: row(5, 6), 2: row(1, 6)}, {1: 1, 2: -1})


@pytest.mark.parametrize("large", [bulk.MAX_REPEATS, bulk.MAX_REPEATS + 1, 1000, 2**40])
def test_large_coefficients_are_multiplied_in(large: int) -> None:
    """On both sides of the bound up to which a row is repeated."""
    rows = {1: row(5, 6), 2: row(7, 8)}
    for terms in ({1: large, 2: 1}, {1: large, 2: -1}, {1: 1, 2: -large}, {1: large, 2: large + 1}):
        expected = b"".join(openssl((terms[1] * a + terms[2] * b) % Q) for a, b in ((5, 7), (6, 8)))
        assert bulk.combine_rows(SECP256K1, rows, terms) == expected
    fits = {1: row(large, 1), 2: row(1, 2)}
    assert bulk.relation_fails(SECP256K1, fits, {1: 1, 2: -large}) == 1
    assert bulk.relation_fails(SECP256K1, {1: row(large), 2: row(1)}, {1: 1, 2: -large}) is None
    assert bulk.relation_fails(SECP256K1, {1: row(large), 2: row(1)}, {1: -1, 2: large}) is None


@pytest.mark.parametrize(
    ("C", "t"),
    [((1, 8, 16), 1), ((1, 2, 9, 15, 16), 2), ((1, 2, 3, 9, 14, 15, 16), 3), ((1, 3, 5, 7, 9, 11, 13, 15, 16), 4)],
)
def test_committees_far_apart(C: tuple[int, ...], t: int) -> None:
    """Relations and combination hold with the large coefficients of members whose indices lie far apart."""
    f = [12345 + k for k in range(t + 1)]
    rows = {j: row(polynomials.evaluate(f, j, Q)) for j in C}
    for relation in polynomials.degree_relations(C, t):
        assert bulk.relation_fails(SECP256K1, rows, relation) is None
    first = polynomials.lagrange(C[: t + 1])
    combined = bulk.combine_rows(SECP256K1, {j: rows[j] for j in C[: t + 1]}, first.numerators)
    assert combined == openssl(first.denominator * f[0])
    for j in C:
        wrong = {**rows, j: row(polynomials.evaluate(f, j, Q) + 1)}
        relations = polynomials.degree_relations(C, t)
        assert any(bulk.relation_fails(SECP256K1, wrong, relation) == 0 for relation in relations)


@pytest.mark.parametrize("scalar", SCALARS)
def test_compress_keeps_the_parity(scalar: int) -> None:
    assert PublicKey(compress(openssl(scalar))).format(compressed=False)[1:] == openssl(scalar)
