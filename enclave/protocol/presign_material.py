"""SPEC 3.2: what one member puts into a batch: its sub-seeds, and the columns of values that come from them."""

from __future__ import annotations

from dataclasses import dataclass

from enclave.crypto import prss
from enclave.crypto.curve import Secp256k1
from policies.transcript import Tag, digest

Column = list[int]
Group = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, repr=False)
class SubSeeds:
    """SPEC 3.2: this member's sub-seeds of one `sid`, keyed by group members. Secret."""

    subsets: dict[tuple[int, ...], bytes]
    pairs: dict[tuple[int, ...], bytes]


def derive_sub_seed(seed: bytes, sid: bytes) -> bytes:
    """SPEC 3.2: 32 bytes that serve this batch alone."""
    return digest(Tag.SUB_SEED, seed, sid)


def groups_in(committee: tuple[int, ...], t: int, member: int) -> tuple[Group, ...]:
    """The groups of `member` within the committee, each with its kind: subsets, then pairs, in the order of
    commitments."""
    every = [("subset", A) for A in prss.subsets(committee, t)] + [("pair", p) for p in prss.pairs(committee)]
    return tuple(group for group in every if member in group[1])


@dataclass(frozen=True, repr=False)
class Material:
    """SPEC 1.4, 1.5 for one batch: columns of shares of random values (`a`, `k` reduced) and of zero. Secret."""

    a: Column
    k: Column
    masks: tuple[Column, Column, Column]
    zeros: tuple[Column, Column, Column]
    rho: int
    beta: int


def expand(C: tuple[int, ...], t: int, me: int, m: int, sub_seeds: SubSeeds) -> Material:
    """SPEC 3.2: the columns of every random value and zero of the batch, from one stream a sub-seed.

    Subset stream: `a ‖ k ‖ mask_w ‖ mask_μ ‖ mask_τ ‖ ρ ‖ β`; pair stream: `zero_w ‖ zero_μ ‖ zero_τ`.
    """
    rand, zero = prss.rand_weights(C, t, me), prss.zero_weights(C, me)
    subset_streams = [prss.keystream(_stream_key(seed), 5 * m + 2) for seed in sub_seeds.subsets.values()]
    pair_streams = [prss.keystream(_stream_key(seed), 3 * m) for seed in sub_seeds.pairs.values()]
    q, size = Secp256k1.q, m * prss.ELEMENT_BYTES

    def rand_column(number: int) -> Column:
        parts = [stream[number * size : (number + 1) * size] for stream in subset_streams]
        return prss.weighted_stream_sums(rand, parts, q)

    def zero_column(number: int) -> Column:
        parts = [stream[number * size : (number + 1) * size] for stream in pair_streams]
        return prss.weighted_stream_sums(zero, parts, q)

    rho, beta = prss.weighted_stream_sums(rand, [stream[5 * size :] for stream in subset_streams], q)
    return Material(
        a=_reduce(rand_column(0), q),
        k=_reduce(rand_column(1), q),
        masks=(rand_column(2), rand_column(3), rand_column(4)),
        zeros=(zero_column(0), zero_column(1), zero_column(2)),
        rho=rho % q,
        beta=beta % q,
    )


def commitments(sub_seeds: SubSeeds) -> tuple[bytes, ...]:
    """SPEC 3.2: a commitment to each sub-seed, in the order of `groups_in`."""
    seeds = [*sub_seeds.subsets.values(), *sub_seeds.pairs.values()]
    return tuple(commit(seed) for seed in seeds)


def commit(sub_seed: bytes) -> bytes:
    """SPEC 3.2: the commitment to one sub-seed. Shares no hash input with its stream."""
    return digest(Tag.SUB_SEED_COMMITMENT, sub_seed)


def _stream_key(sub_seed: bytes) -> bytes:
    return digest(Tag.STREAM, sub_seed)


def _reduce(column: Column, q: int) -> Column:
    return [value % q for value in column]
