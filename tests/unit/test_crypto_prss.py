"""Pseudorandom sharing: streams, weights, and what the shares of a committee make together."""

from __future__ import annotations

import hashlib
from itertools import combinations

import pytest
from Crypto.Cipher import ChaCha20

from enclave.crypto import polynomials, prss
from enclave.crypto.curve import SECP256K1

Q = SECP256K1.q
SCHEMES = [(1, 3), (2, 5), (3, 7)]
COMMITTEES = [(t, C) for t, n in (*SCHEMES, (1, 5)) for C in combinations(range(1, n + 1), 2 * t + 1)]


def seed(name: object) -> bytes:
    return hashlib.sha256(repr(name).encode()).digest()


def stream(name: object, count: int) -> list[int]:
    return prss.elements(prss.keystream(seed(name), count))


def rand_share(C: tuple[int, ...], t: int, j: int) -> int:
    columns = [stream(A, 1) for A in prss.subsets(C, t) if j in A]
    return prss.weighted_sums(prss.rand_weights(C, t, j), columns)[0] % Q


def zero_share(C: tuple[int, ...], j: int) -> int:
    columns = [stream(pair, 1) for pair in prss.pairs(C) if j in pair]
    return prss.weighted_sums(prss.zero_weights(C, j), columns)[0] % Q


def test_subsets_and_pairs_are_ascending_and_in_order() -> None:
    assert prss.subsets((3, 1, 2), 1) == ((1, 2), (1, 3), (2, 3))
    assert prss.subsets((5, 1, 2, 4, 3), 2)[:3] == ((1, 2, 3), (1, 2, 4), (1, 2, 5))
    assert len(prss.subsets(range(1, 8), 3)) == 35
    assert prss.pairs((4, 2, 9)) == ((2, 4), (2, 9), (4, 9))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_the_keystream_is_chacha20_from_its_start(count: int) -> None:
    expected = ChaCha20.new(key=seed("k"), nonce=bytes(8)).encrypt(bytes(32 * count))
    assert prss.keystream(seed("k"), count) == expected


def test_the_keystream_of_the_zero_key() -> None:
    """RFC 8439, A.1, test vector 1."""
    assert prss.keystream(bytes(32), 1).hex() == "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"


def test_elements_are_big_endian_and_not_reduced() -> None:
    assert prss.elements(b"") == []
    assert prss.elements(b"\xff" * 32 + bytes(31) + b"\x01") == [2**256 - 1, 1]


@pytest.mark.parametrize(("t", "C"), COMMITTEES)
def test_rand_weights_are_a_scaled_f_A(t: int, C: tuple[int, ...]) -> None:
    """`f_A` is 0 on `C∖A`, of degree t, and the same multiple of 1 at 0 for every subset A."""
    every = prss.subsets(C, t)
    scales = set()
    for A in every:
        values = dict.fromkeys(C, 0)
        for j in A:
            held = [B for B in every if j in B]
            values[j] = prss.rand_weights(C, t, j).weights[held.index(A)]
        assert polynomials.has_degree(values, t, Q)
        scales.add(polynomials.interpolate(values, Q))
    assert len(scales) == 1
    assert 0 < scales.pop() < 10**6


@pytest.mark.parametrize(("t", "C"), COMMITTEES)
def test_rand_is_of_degree_exactly_t_and_the_sum_of_the_seeds(t: int, C: tuple[int, ...]) -> None:
    shares = {j: rand_share(C, t, j) for j in C}
    assert polynomials.has_degree(shares, t, Q)
    assert not polynomials.has_degree(shares, t - 1, Q)
    total = sum(stream(A, 1)[0] for A in prss.subsets(C, t))
    value = polynomials.interpolate(shares, Q)
    factor = value * pow(total, -1, Q) % Q
    assert 0 < factor < 10**6
    for group in combinations(C, t + 1):
        assert polynomials.interpolate({j: shares[j] for j in group}, Q) == value


@pytest.mark.parametrize(("t", "C"), COMMITTEES)
def test_zero_is_of_degree_exactly_2t_and_interpolates_to_zero(t: int, C: tuple[int, ...]) -> None:
    shares = {j: zero_share(C, j) for j in C}
    assert polynomials.interpolate(shares, Q) == 0
    assert not polynomials.has_degree(shares, 2 * t - 1, Q)
    assert all(shares.values())


def test_weighted_sums_are_by_column() -> None:
    assert prss.weighted_sums(prss.Weights((2, -3)), [[1, 10], [4, 5]]) == [-10, 5]
    assert prss.weighted_sums(prss.Weights((7,)), [[1, 2, 3]]) == [7, 14, 21]


@pytest.mark.parametrize("columns", [[[1]], [[1], [2], [3]], [[1, 2], [3]]])
def test_weighted_sums_refuse_columns_that_do_not_fit(columns: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        prss.weighted_sums(prss.Weights((1, 1)), columns)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("weights", [(1,), (3, -2), (-1, -5, 7), (2**40, -(2**45), 1), (-1,)])
def test_sums_of_streams_are_those_of_their_elements(weights: tuple[int, ...], count: int) -> None:
    q = SECP256K1.q
    drawn = [prss.keystream(bytes([number]) * 32, count) for number in range(len(weights))]
    for streams in (drawn, [b"\xff" * 32 * count] * len(weights), [bytes(32 * count)] * len(weights)):
        expected = prss.weighted_sums(prss.Weights(weights), [prss.elements(stream) for stream in streams])
        totals = prss.weighted_stream_sums(prss.Weights(weights), streams, q)
        assert [total % q for total in totals] == [total % q for total in expected]
        assert min(totals) >= 0


def test_weights_too_large_for_a_lane_are_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        prss.weighted_stream_sums(prss.Weights((2**256,)), [bytes(32)], SECP256K1.q)


@pytest.mark.parametrize("t", [1, 2, 3, 4, 5])
def test_weights_of_the_widest_committees_fit_into_a_lane(t: int) -> None:
    C = (1, *range(17 - 2 * t, 17))
    for j in C:
        for weights in (prss.rand_weights(C, t, j), prss.zero_weights(C, j)):
            assert sum(map(abs, weights.weights)).bit_length() < 200
