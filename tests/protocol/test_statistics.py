"""Presignatures in numbers: no nonce twice, nonces and their masks uniform, across batches, setups and committees.

The nonces are put together here, and nowhere else, from all members' shares, and fit the points that the protocol gave.

Bounds: a count of `N` fair coins is off by `x` or more with probability at most `2·exp(-2x²/N)` (Hoeffding); a sum of
chi-square with `d` degrees of freedom exceeds `d + 2·√(d·y) + 2y`, or falls below `d - 2·√(d·y)`, with probability at
most `exp(-y)` each (Laurent and Massart; a histogram this large is chi-square for all that matters). `y` and `x` are
chosen so that all tests of one run together raise a false alarm with probability below 1e-9.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from enclave.crypto import polynomials
from enclave.crypto.curve import SECP256K1
from enclave.protocol import presign, setup
from tests.fakes.network import Network, results, seeded_random
from tests.fakes.rounds import ROSTER_DIGEST, sub_seeds

Q = SECP256K1.q
WIDTH = 32
FALSE_ALARM = 1e-9
# Columns that are looked at, each with its own histogram: see `Sample.columns`. More than there are.
MOST_COLUMNS = 16
Draw = Callable[[int], bytes]


@dataclass
class Sample:
    """What a run gave, in order: nonces `k`, masks `a` (32 bytes each), products `w`, points (64 bytes each)."""

    k: bytearray = field(default_factory=bytearray)
    a: bytearray = field(default_factory=bytearray)
    w: bytearray = field(default_factory=bytearray)
    points: list[bytes] = field(default_factory=list)

    def columns(self, m: int) -> dict[str, bytes]:
        """Values that must be uniform, and differences of values that must have nothing to do with each other."""
        k, a, w = bytes(self.k), bytes(self.a), bytes(self.w)
        found = {"k": k, "a": a, "w": w, "k and a": xor(k, a), "k and w": xor(k, w), "a and w": xor(a, w)}
        for name, values in (("k", k), ("a", a), ("w", w)):
            found[f"{name} and the next"] = xor(values, values[WIDTH:])
            found[f"{name} and the same of the next batch"] = xor(values, values[WIDTH * m :])
        found["x"] = b"".join(point[:WIDTH] for point in self.points)
        return found


def xor(one: bytes, other: bytes) -> bytes:
    size = min(len(one), len(other))
    return (int.from_bytes(one[:size], "big") ^ int.from_bytes(other[:size], "big")).to_bytes(size, "big")


def make(n: int, t: int, epochs: int, batches: int, m: int, draw: Callable[[str], Draw]) -> Sample:
    """`epochs` setups, in each `batches` batches of `m`, by committees in turn."""
    sample = Sample()
    roster = tuple(range(1, n + 1))
    committees = [roster[start : start + 2 * t + 1] for start in range(n - 2 * t)]
    for epoch in range(1, epochs + 1):
        seeds = run_setup(roster, t, epoch, draw)
        for number in range(batches):
            committee = committees[number % len(committees)]
            sid = hashlib.sha256(f"{n}/{t}/{epoch}/{number}".encode()).digest()
            add_batch(sample, seeds, committee, t, m, sid)
    return sample


def run_setup(roster: tuple[int, ...], t: int, epoch: int, draw: Callable[[str], Draw]) -> dict[int, setup.Seeds]:
    async def install(seeds: setup.Seeds) -> None:
        assert seeds.epoch == epoch

    network = Network(roster, hashlib.sha256(f"setup {epoch}".encode()).digest(), setup.ROUNDS)
    return results(
        network.run(lambda s: setup.setup(s, t, epoch, ROSTER_DIGEST, draw(f"statistics/{epoch}/{s.me}"), install))
    )


def add_batch(sample: Sample, seeds: dict[int, setup.Seeds], C: tuple[int, ...], t: int, m: int, sid: bytes) -> None:
    own = {j: sub_seeds(seeds[j], C, t, j, sid) for j in C}
    network = Network(C, sid, presign.ROUNDS)
    done = results(network.run(lambda s: presign.presign(s, SECP256K1, t, m, own[s.me])))
    assert len({batch.points for batch in done.values()}) == 1
    points = done[C[0]].points
    sample.points += [points[64 * l : 64 * (l + 1)] for l in range(m)]
    material = {j: presign.expand(C, t, j, m, own[j]) for j in C}
    first, D = C[: t + 1], polynomials.lagrange(C[: t + 1]).denominator
    for l in range(m):
        k = polynomials.interpolate({j: material[j].k[l] % Q for j in first}, Q) * D % Q
        a = polynomials.interpolate({j: material[j].a[l] % Q for j in first}, Q)
        inverse = polynomials.interpolate(
            {j: int.from_bytes(done[j].inverse_shares[WIDTH * l : WIDTH * (l + 1)], "big") for j in first}, Q
        )
        assert inverse * k % Q == 1
        sample.k += k.to_bytes(WIDTH, "big")
        sample.a += a.to_bytes(WIDTH, "big")
        sample.w += (k * a % Q).to_bytes(WIDTH, "big")
        nonce_point = SECP256K1.generate(k)
        assert (nonce_point[1:], nonce_point[0] & 1) == (points[64 * l : 64 * l + WIDTH], points[64 * l + 63] & 1)


def repeated(sample: Sample) -> list[str]:
    """What comes twice. Of a point the x alone: its negative is as bad."""
    return [
        name
        for name, values in {
            "R": [point[:WIDTH] for point in sample.points],
            **{name: cut(bytes(getattr(sample, name))) for name in ("k", "a", "w")},
        }.items()
        if len(set(values)) != len(values)
    ]


def cut(column: bytes) -> list[bytes]:
    return [column[start : start + WIDTH] for start in range(0, len(column), WIDTH)]


def skewed(name: str, column: bytes) -> list[str]:
    """Which bits and bytes of a column are not uniform."""
    N, found = len(column) // WIDTH, []
    tests = MOST_COLUMNS * (8 * WIDTH + WIDTH + 1)
    allowed = math.sqrt(N / 2 * math.log(2 * tests / FALSE_ALARM))
    every: Counter[int] = Counter()
    for place in range(WIDTH):
        histogram = Counter(column[place::WIDTH])
        every += histogram
        for bit in range(8):
            ones = sum(count for value, count in histogram.items() if value >> bit & 1)
            if abs(ones - N / 2) > allowed:
                found.append(f"{name}: bit {bit} of byte {place} is set {ones} times of {N}")
        if not likely(histogram, N, tests):
            found.append(f"{name}: byte {place}")
    if not likely(every, N * WIDTH, tests):
        found.append(f"{name}: all bytes")
    return found


def likely(histogram: Counter[int], total: int, tests: int) -> bool:
    """Whether the bytes' frequencies are what chance gives."""
    expected, d = total / 256, 255
    chi_square = sum((histogram[value] - expected) ** 2 / expected for value in range(256))
    y = math.log(2 * tests / FALSE_ALARM)
    return d - 2 * math.sqrt(d * y) < chi_square < d + 2 * math.sqrt(d * y) + 2 * y


def check(sample: Sample, m: int) -> None:
    columns = sample.columns(m)
    assert len(columns) <= MOST_COLUMNS
    assert repeated(sample) == []
    assert [line for name, column in columns.items() for line in skewed(name, column)] == []


@pytest.fixture(scope="module")
def some() -> Sample:
    """The same ones in every check: 4,000 in two setups."""
    return make(3, 1, epochs=2, batches=4, m=500, draw=seeded_random)


def test_thousands_of_presignatures(some: Sample) -> None:
    assert len(some.points) == 4000
    check(some, 500)


def test_thousands_of_presignatures_by_several_committees() -> None:
    check(make(5, 1, epochs=2, batches=6, m=200, draw=seeded_random), 200)
    check(make(5, 2, epochs=2, batches=3, m=400, draw=seeded_random), 400)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("n", "t"), [(3, 1), (5, 1), (5, 2)])
def test_a_hundred_thousand_presignatures(n: int, t: int) -> None:
    """Fresh ones each time."""
    sample = make(n, t, epochs=4, batches=10, m=2500, draw=lambda name: os.urandom)
    assert len(sample.points) == 100_000
    check(sample, 2500)


# --- the checks can fail ---


def test_a_repeated_nonce_is_seen(some: Sample) -> None:
    again = Sample(some.k + some.k[:WIDTH], some.a, some.w, [*some.points, some.points[17]])
    assert repeated(again) == ["R", "k"]
    negative = some.points[17][:WIDTH] + bytes(WIDTH)
    assert repeated(Sample(some.k, some.a, some.w, [*some.points, negative])) == ["R"]


BIASES: dict[str, Callable[[int, bytes], bytes]] = {
    "a bit that is always 0": lambda l, value: bytes([value[0] & 0x7F]) + value[1:],
    "a bit that is set twice in three times": lambda l, value: value[:-1] + bytes([value[-1] | (l % 3 == 0)]),
    "a byte of even parity": lambda l, value: value[:9] + bytes([even(value[9])]) + value[10:],
}


def even(byte: int) -> int:
    """A byte of even parity: each of its bits is fair."""
    return byte ^ (byte.bit_count() & 1)


@pytest.mark.parametrize("bias", BIASES)
def test_a_bias_is_seen(some: Sample, bias: str) -> None:
    biased = b"".join(BIASES[bias](l, value) for l, value in enumerate(cut(bytes(some.k))))
    assert skewed("k", biased) != []


def test_a_nonce_that_depends_on_the_one_before_is_seen(some: Sample) -> None:
    """Uniform by itself, and so is each of its bytes: only together with its neighbour it is not."""
    values = cut(bytes(some.k))
    tied = bytearray()
    for number in range(0, len(values), 2):
        tied += values[number] + values[number][:1] + values[number + 1][1:]
    assert skewed("k", bytes(tied)) == []
    together = Sample(tied, some.a, some.w, some.points).columns(500)["k and the next"]
    assert skewed("k and the next", together) != []
