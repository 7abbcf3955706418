"""Pseudorandom secret sharing: shares of random values and of zero without messages (SPEC 1.4, 1.5).

Source: Cramer, Damgård, Ishai 2005 for `Rand`; pairwise masks for `Zero` (SPEC, differences).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from math import lcm

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from enclave.crypto.polynomials import lagrange

ELEMENT_BYTES = 32
_ZERO_NONCE = bytes(16)


def subsets(members: Sequence[int], t: int) -> tuple[tuple[int, ...], ...]:
    """All `(t+1)`-subsets of `members`, each ascending, in lexicographic order."""
    return tuple(combinations(sorted(members), t + 1))


def pairs(members: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """All pairs `(i, j)` with `i < j`, in lexicographic order."""
    return tuple(combinations(sorted(members), 2))


def keystream(key: bytes, count: int) -> bytes:
    """`count` blocks of 32 bytes: the ChaCha20 stream of a 32-byte key that serves one stream only."""
    cipher = Cipher(algorithms.ChaCha20(key, _ZERO_NONCE), mode=None)
    return cipher.encryptor().update(bytes(count * ELEMENT_BYTES))


def elements(stream: bytes) -> list[int]:
    """The stream cut into 256-bit integers, *not* reduced. For orders within 2^128 of 2^256 (secp256k1) a value
    reduced mod q is within statistical distance 2^-127 of uniform; P-256 would need 48 bytes an element."""
    convert = int.from_bytes
    return [convert(stream[start : start + ELEMENT_BYTES], "big") for start in range(0, len(stream), ELEMENT_BYTES)]


@dataclass(frozen=True)
class Weights:
    """Integer weights with which member `j` adds up the elements of the seeds it holds.

    The common scale that makes them integers multiplies every member's share alike, so it changes the shared
    value by a public non-zero factor: a uniform value stays uniform, zero stays zero.
    """

    weights: tuple[int, ...]


@lru_cache(maxsize=1024)
def rand_weights(committee: tuple[int, ...], t: int, j: int) -> Weights:
    """SPEC 1.4: `f_A(j)` for each `(t+1)`-subset `A ∋ j` of the committee, in the order of `subsets`.

    `f_A` has degree ≤ t, `f_A(0) = 1`, and is zero on the committee's other members.
    """
    values = {}
    scale = 1
    for A in subsets(committee, t):
        for member in A:
            value = Fraction(1)
            for i in committee:
                if i not in A:
                    value *= Fraction(i - member, i)
            values[A, member] = value
            scale = lcm(scale, value.denominator)
    return Weights(tuple(int(values[A, j] * scale) for A in subsets(committee, t) if j in A))


@lru_cache(maxsize=1024)
def zero_weights(committee: tuple[int, ...], j: int) -> Weights:
    """SPEC 1.5: `±1/λ_j^C` for each pair that holds `j`, in the order of `pairs`; plus where `j` is the lower.

    Interpolated at 0 over all `2t+1` members the shares cancel pairwise: a degree-2t sharing of zero.
    """
    coefficients = lagrange(committee)
    inverses = {i: Fraction(coefficients.denominator, c) for i, c in coefficients.numerators.items()}
    scale = lcm(*(value.denominator for value in inverses.values()))
    weight = int(inverses[j] * scale)
    return Weights(tuple(weight if j == pair[0] else -weight for pair in pairs(committee) if j in pair))


def weighted_sums(weights: Weights, columns: Sequence[Sequence[int]]) -> list[int]:
    """`Σ_i weights[i]·columns[i][l]` for every `l`, not reduced."""
    first, *rest = zip(weights.weights, columns, strict=True)
    totals = [first[0] * value for value in first[1]]
    for weight, column in rest:
        totals = [total + weight * value for total, value in zip(totals, column, strict=True)]
    return totals


def weighted_stream_sums(weights: Weights, streams: Sequence[bytes], q: int) -> list[int]:
    """Integers that are `Σ_i weights[i]·elements(streams[i])[l]` mod `q` for every `l`, none negative, not reduced.

    A whole stream is two large integers, of its even and of its odd elements, with as many zero bits before each as it
    has itself: so a stream costs a few passes over bytes, and elements become integers of their own once a sum.
    Raises `ValueError` where a sum would not fit into such a lane.
    """
    count = len(streams[0]) // ELEMENT_BYTES
    pairs_of_lanes = (count + 1) // 2
    padding = bytes(2 * pairs_of_lanes * ELEMENT_BYTES - len(streams[0]))
    negative = -sum(weight for weight in weights.weights if weight < 0)
    # A multiple of q above whatever is subtracted, so that no lane borrows from the next.
    offset = q << negative.bit_length() + 1 if negative else 0
    most = offset + (sum(map(abs, weights.weights)) << 8 * ELEMENT_BYTES)
    width, lane = (most.bit_length() + 7) // 8, 2 * ELEMENT_BYTES
    if width > lane:
        raise ValueError("weights too large for a lane")
    mask = int.from_bytes((bytes(ELEMENT_BYTES) + b"\xff" * ELEMENT_BYTES) * pairs_of_lanes, "big")
    first = second = int.from_bytes(offset.to_bytes(lane, "big") * pairs_of_lanes, "big")
    for weight, stream in zip(weights.weights, streams, strict=True):
        value = int.from_bytes(padding + stream, "big")
        first += weight * (value >> 8 * ELEMENT_BYTES & mask)
        second += weight * (value & mask)
    totals = [0] * (2 * pairs_of_lanes)
    convert = int.from_bytes
    for start, lanes in enumerate((first, second)):
        data = lanes.to_bytes(lane * pairs_of_lanes, "big")
        totals[start::2] = [convert(data[end - width : end], "big") for end in range(lane, len(data) + 1, lane)]
    return totals[len(padding) // ELEMENT_BYTES :]
