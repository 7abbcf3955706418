"""The proof of knowledge: complete, bound to key and context, and never an exception."""

from __future__ import annotations

import pytest

from enclave.crypto import schnorr
from enclave.crypto.curve import SECP256K1
from tests.fakes.network import seeded_random

Q = SECP256K1.q
CONTEXT = b"c" * 37


def proof_of(x: int, context: bytes = CONTEXT) -> bytes:
    return schnorr.prove(SECP256K1, x, context, seeded_random("proof"))


@pytest.mark.parametrize("x", [1, 2, Q - 1, 2**200 + 1])
def test_a_proof_verifies_for_its_key_and_context_alone(x: int) -> None:
    proof, X = proof_of(x), SECP256K1.generate(x)
    assert schnorr.verify(SECP256K1, X, proof, CONTEXT)
    assert not schnorr.verify(SECP256K1, SECP256K1.generate(x % (Q - 1) + 1 if x != 1 else 5), proof, CONTEXT)
    assert not schnorr.verify(SECP256K1, bytes([X[0] ^ 1]) + X[1:], proof, CONTEXT)
    assert not schnorr.verify(SECP256K1, X, proof, CONTEXT + b"\0")
    assert not schnorr.verify(SECP256K1, X, proof, b"d" + CONTEXT[1:])


def test_every_flipped_bit_is_refused() -> None:
    proof, X = proof_of(12345), SECP256K1.generate(12345)
    for bit in range(8 * schnorr.PROOF_BYTES):
        altered = bytearray(proof)
        altered[bit // 8] ^= 1 << bit % 8
        assert not schnorr.verify(SECP256K1, X, bytes(altered), CONTEXT)


@pytest.mark.parametrize("change", [lambda p: b"", lambda p: p[:-1], lambda p: p + b"\0", lambda p: bytes(65)])
def test_proofs_of_another_size_or_of_nothing_are_refused(change) -> None:
    assert not schnorr.verify(SECP256K1, SECP256K1.generate(9), change(proof_of(9)), CONTEXT)


def test_z_plus_q_is_refused() -> None:
    """A second encoding of the same proof, for a `z` small enough to have one."""
    X = SECP256K1.generate(9)
    for attempt in range(3):
        proof = schnorr.prove(SECP256K1, 9, CONTEXT, seeded_random(f"z/{attempt}"))
        z = int.from_bytes(proof[33:], "big")
        assert not schnorr.verify(SECP256K1, X, proof[:33] + ((z + Q) % 2**256).to_bytes(32, "big"), CONTEXT)
    assert not schnorr.verify(SECP256K1, X, proof[:33] + bytes(32), CONTEXT)
    assert not schnorr.verify(SECP256K1, X, proof[:33] + Q.to_bytes(32, "big"), CONTEXT)


@pytest.mark.parametrize("X", [b"", bytes(33), b"\x02" + (5).to_bytes(32, "big"), b"\x05" * 33])
def test_a_key_that_is_no_point_is_refused(X: bytes) -> None:
    assert not schnorr.verify(SECP256K1, X, proof_of(9), CONTEXT)


def test_two_proofs_of_one_key_differ() -> None:
    random = seeded_random("two")
    assert len({schnorr.prove(SECP256K1, 9, CONTEXT, random)[:33] for _ in range(5)}) == 5


def test_random_scalars_are_never_zero_and_come_from_64_bytes() -> None:
    drawn = iter([bytes(64), Q.to_bytes(64, "big"), (Q + 5).to_bytes(64, "big")])
    asked: list[int] = []

    def random(count: int) -> bytes:
        asked.append(count)
        return next(drawn)

    assert schnorr.random_scalar(SECP256K1, random) == 5
    assert asked == [64, 64, 64]
