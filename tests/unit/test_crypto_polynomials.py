"""Lagrange coefficients, degree relations and interpolation, against values worked out by hand."""

from __future__ import annotations

from itertools import combinations

import pytest

from enclave.crypto import polynomials as p
from enclave.crypto.curve import SECP256K1

Q = SECP256K1.q


def test_horner() -> None:
    assert p.evaluate([5, 3, 2], 10, Q) == 235
    assert p.evaluate([5, 3, 2], 0, Q) == 5
    assert p.evaluate([Q - 1, 1], 1, Q) == 0
    assert p.evaluate([], 7, Q) == 0


@pytest.mark.parametrize(
    ("points", "numerators", "denominator"),
    [
        ((1, 2, 3), {1: 3, 2: -3, 3: 1}, 1),
        ((1, 2), {1: 2, 2: -1}, 1),
        ((1, 3), {1: 3, 3: -1}, 2),
        ((2, 5), {2: 5, 5: -2}, 3),
        ((1, 2, 4), {1: 8, 2: -6, 4: 1}, 3),
        ((4,), {4: 1}, 1),
    ],
)
def test_coefficients_at_zero(points: tuple[int, ...], numerators: dict[int, int], denominator: int) -> None:
    found = p.lagrange(points)
    assert (dict(found.numerators), found.denominator) == (numerators, denominator)
    assert sum(found.modulo(Q).values()) % Q == 1


def test_coefficients_at_another_point() -> None:
    found = p.lagrange((1, 2, 3), at=4)
    assert (dict(found.numerators), found.denominator) == ({1: 1, 2: -3, 3: 3}, 1)
    assert p.interpolate({1: 1, 2: 4, 3: 9}, Q, at=4) == 16


@pytest.mark.parametrize("points", [(1, 1), (1, 2, 1), (3, 2, 3)])
def test_two_equal_points_are_refused(points: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="equal"):
        p.lagrange(points)


@pytest.mark.parametrize(
    ("points", "t", "relations"),
    [
        ((1, 2, 3), 1, ({1: -1, 2: 2, 3: -1},)),
        ((1, 2, 3), 2, ()),
        ((1, 2, 4), 1, ({1: -2, 2: 3, 4: -1},)),
        ((1, 2, 3), 0, ({1: 1, 2: -1}, {2: 1, 3: -1})),
    ],
)
def test_degree_relations(points: tuple[int, ...], t: int, relations: tuple[dict[int, int], ...]) -> None:
    assert tuple(dict(each) for each in p.degree_relations(points, t)) == relations


@pytest.mark.parametrize("t", [1, 2, 3])
def test_every_relation_set_of_a_committee_is_complete(t: int) -> None:
    """`t` relations for `2t+1` members, each member in at least one, and small enough for repeated addition."""
    for points in combinations(range(1, 8), 2 * t + 1):
        relations = p.degree_relations(points, t)
        assert len(relations) == t
        assert set().union(*relations) == set(points)
        for relation in relations:
            assert all(relation.values())
            assert sum(relation.values()) == 0


def test_one_wrong_share_anywhere_breaks_the_degree() -> None:
    shares = {j: p.evaluate([7, 11, 13], j, Q) for j in (1, 2, 3, 4, 5)}
    assert p.has_degree(shares, 2, Q)
    assert not p.has_degree(shares, 1, Q)
    for j in shares:
        assert not p.has_degree({**shares, j: (shares[j] + 1) % Q}, 2, Q)
