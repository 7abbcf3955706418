"""Polynomials over the scalars: evaluation, Lagrange coefficients, and checks that points lie on a low degree.

Party indices are small integers, so coefficients are first computed exactly, as rationals, and scaled to integers
by a common denominator: sums over small integers need one reduction at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm


def evaluate(coefficients: Sequence[int], x: int, q: int) -> int:
    """`Σ c_k·x^k mod q` by Horner's rule; `coefficients[0]` is the constant term."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % q
    return value


@dataclass(frozen=True)
class IntegerCoefficients:
    """`λ_j = numerators[j] / denominator`, exact over the rationals, `denominator > 0` and least."""

    numerators: Mapping[int, int]
    denominator: int

    def modulo(self, q: int) -> dict[int, int]:
        """The coefficients as scalars mod `q`."""
        inverse = pow(self.denominator, -1, q)
        return {j: c * inverse % q for j, c in self.numerators.items()}


@lru_cache(maxsize=4096)
def lagrange(points: tuple[int, ...], at: int = 0) -> IntegerCoefficients:
    """Lagrange coefficients over the distinct integers `points`, for the value at `at`."""
    if len(set(points)) != len(points):
        raise ValueError("two equal interpolation points")
    fractions = {}
    for j in points:
        value = Fraction(1)
        for i in points:
            if i != j:
                value *= Fraction(at - i, j - i)
        fractions[j] = value
    denominator = lcm(*(value.denominator for value in fractions.values()))
    return IntegerCoefficients({j: int(value * denominator) for j, value in fractions.items()}, denominator)


@lru_cache(maxsize=1024)
def degree_relations(points: tuple[int, ...], t: int) -> tuple[Mapping[int, int], ...]:
    """Integer relations `Σ c_j·y_j = 0` that hold exactly if `y` lies on a polynomial of degree ≤ `t`.

    One relation over each run of `t + 2` neighbouring points: `len(points) - t - 1` of them, together complete.
    """
    relations = []
    for start in range(len(points) - t - 1):
        run = points[start : start + t + 2]
        coefficients = lagrange(run[:-1], at=run[-1])
        relations.append({**coefficients.numerators, run[-1]: -coefficients.denominator})
    return tuple(relations)


def interpolate(shares: Mapping[int, int], q: int, at: int = 0) -> int:
    """The value at `at` of the polynomial through all `shares` (index → scalar), mod `q`."""
    coefficients = lagrange(tuple(sorted(shares)), at)
    total = sum(coefficients.numerators[j] * share for j, share in shares.items())
    return total * pow(coefficients.denominator, -1, q) % q


def has_degree(shares: Mapping[int, int], t: int, q: int) -> bool:
    """Whether all `shares` lie on one polynomial of degree ≤ `t` mod `q`."""
    return all(
        sum(c * shares[j] for j, c in relation.items()) % q == 0
        for relation in degree_relations(tuple(sorted(shares)), t)
    )
