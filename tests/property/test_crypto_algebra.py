"""The algebra that the protocols rest on, for any values."""

from __future__ import annotations

from itertools import combinations

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from enclave.crypto import polynomials, prss, schnorr
from enclave.crypto.curve import SECP256K1
from enclave.protocol import presign
from policies.transcript import Tag, digest, encode_parts
from tests.fakes.network import seeded_random

Q = SECP256K1.q
SCALARS = st.one_of(st.integers(0, Q - 1), st.integers(0, 3), st.integers(Q - 3, Q - 1))
INDICES = st.integers(1, 16)


@st.composite
def sharings(draw: st.DrawFn) -> tuple[list[int], tuple[int, ...], int]:
    """A polynomial of degree ≤ t, and at least t + 2 indices."""
    t = draw(st.integers(1, 4))
    points = tuple(sorted(draw(st.sets(INDICES, min_size=t + 2, max_size=9))))
    return draw(st.lists(SCALARS, min_size=t + 1, max_size=t + 1)), points, t


@st.composite
def committees(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    t = draw(st.integers(1, 2))
    return tuple(sorted(draw(st.sets(st.integers(1, 9), min_size=2 * t + 1, max_size=2 * t + 1)))), t


@settings(max_examples=60, deadline=None)
@given(sharings(), st.integers(0, 20))
def test_any_t_plus_one_shares_interpolate(sharing: tuple[list[int], tuple[int, ...], int], at: int) -> None:
    f, points, t = sharing
    for group in list(combinations(points, t + 1))[:8]:
        shares = {j: polynomials.evaluate(f, j, Q) for j in group}
        assert polynomials.interpolate(shares, Q, at) == polynomials.evaluate(f, at, Q)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_relations_hold_exactly_on_degree_t(data: st.DataObject) -> None:
    f, points, t = data.draw(sharings())
    shares = {j: polynomials.evaluate(f, j, Q) for j in points}
    assert polynomials.has_degree(shares, t, Q)
    wrong = data.draw(st.dictionaries(st.sampled_from(points), st.integers(1, Q - 1), min_size=1, max_size=len(points)))
    changed = {j: (share + wrong.get(j, 0)) % Q for j, share in shares.items()}
    # Off degree t exactly if the errors are: they lie on degree t if the rest follows from the first t + 1.
    errors = {j: wrong.get(j, 0) for j in points}
    first = {j: errors[j] for j in points[: t + 1]}
    consistent = all(polynomials.interpolate(first, Q, j) == errors[j] for j in points)
    assert polynomials.has_degree(changed, t, Q) == consistent
    if len(wrong) < len(points) - t:
        assert not consistent


@settings(max_examples=40, deadline=None)
@given(committees(), st.binary(min_size=8, max_size=8))
def test_pseudorandom_shares(committee: tuple[tuple[int, ...], int], salt: bytes) -> None:
    """Shares of a random value lie on degree t and not below; shares of zero interpolate to 0."""
    C, t = committee

    def column(group: tuple[int, ...]) -> list[int]:
        return prss.elements(prss.keystream(digest(Tag.STREAM, salt, bytes(group)), 1))

    rand, zero = {}, {}
    for j in C:
        columns = [column(A) for A in prss.subsets(C, t) if j in A]
        rand[j] = prss.weighted_sums(prss.rand_weights(C, t, j), columns)[0] % Q
        columns = [column(pair) for pair in prss.pairs(C) if j in pair]
        zero[j] = prss.weighted_sums(prss.zero_weights(C, j), columns)[0] % Q
    assert polynomials.has_degree(rand, t, Q)
    assert not polynomials.has_degree(rand, t - 1, Q)
    assert polynomials.interpolate(zero, Q) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, Q - 1) | st.sampled_from([1, 2, Q - 1]), min_size=1, max_size=20))
def test_batch_inversion_is_inversion(values: list[int]) -> None:
    assert presign._invert_all(values, Q) == [pow(value, -1, Q) for value in values]


@settings(max_examples=60, deadline=None)
@given(st.lists(SCALARS, max_size=20))
def test_columns_survive_packing(column: list[int]) -> None:
    assume(column)
    assert presign.unpack(1, presign._pack(column), len(column), Q, "3.3") == column
    assert prss.elements(presign._pack(column)) == column


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(0, 20), st.integers(0, 20))
def test_a_longer_keystream_goes_on_where_the_shorter_ended(key: bytes, shorter: int, more: int) -> None:
    long = prss.keystream(key, shorter + more)
    assert long.startswith(prss.keystream(key, shorter))
    assert len(long) == 32 * (shorter + more)


PARTS = st.lists(st.binary(max_size=12), max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(Tag), st.sampled_from(Tag), PARTS, PARTS)
def test_the_encoding_of_parts_is_injective(tag: Tag, other: Tag, parts: list[bytes], others: list[bytes]) -> None:
    """Decoded back to the same tag and parts, so no two lists share an encoding."""
    encoded = encode_parts(tag, *parts)
    read, position = [], 0
    while position < len(encoded):
        size = int.from_bytes(encoded[position : position + 8], "big")
        read.append(encoded[position + 8 : position + 8 + size])
        position += 8 + size
    assert read == [tag.value.encode(), *parts]
    assert (encoded == encode_parts(other, *others)) == ((tag, parts) == (other, others))


@given(st.lists(st.binary(max_size=6), min_size=2, max_size=4))
def test_bytes_moved_between_parts_change_the_hash(parts: list[bytes]) -> None:
    joined = [parts[0] + parts[1], b"", *parts[2:]]
    assume(joined != parts)
    assert digest(Tag.CONTENT, *parts) != digest(Tag.CONTENT, *joined)
    assert digest(Tag.CONTENT, *parts) != digest(Tag.CONTENT, *parts, b"")


def test_tags_are_distinct() -> None:
    assert len({tag.value for tag in Tag}) == len(Tag.__members__)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, Q - 1), st.binary(max_size=40), st.binary(max_size=40), st.text(max_size=5))
def test_proofs_verify_in_their_context_alone(x: int, context: bytes, other: bytes, seed: str) -> None:
    proof = schnorr.prove(SECP256K1, x, context, seeded_random(seed))
    X = SECP256K1.generate(x)
    assert schnorr.verify(SECP256K1, X, proof, context)
    assert schnorr.verify(SECP256K1, X, proof, other) == (other == context)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_as_a_proof_are_refused_without_an_exception(X: bytes, proof: bytes) -> None:
    assert schnorr.verify(SECP256K1, X, proof, b"") is False
