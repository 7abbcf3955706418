"""Key generation (SPEC 2) with openings that match their commitment and are wrong in themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from enclave.crypto import polynomials, schnorr
from enclave.crypto.curve import SECP256K1
from enclave.protocol import keygen
from enclave.protocol.session import RoundMessage
from policies.transcript import DIGEST_BYTES
from tests.fakes.network import seeded_random
from tests.fakes.rounds import CHEATER, committed_opening, honest, keygen_ceremony, on_the_way, replaced, rewrite

Q, G = SECP256K1.q, SECP256K1.generate(1)


def with_key(**changes: Any) -> Callable[[keygen.Opening], keygen.Opening]:
    return lambda opening: msgspec.structs.replace(
        opening, keys=(msgspec.structs.replace(opening.keys[0], **changes), *opening.keys[1:])
    )


NO_POINTS = {
    "identity": bytes(33),
    "identity of another encoding": b"\x02" + bytes(32),
    "prefix of an uncompressed one": b"\x04" + G[1:],
    "hybrid prefix": b"\x06" + G[1:],
    "x at the field's order": b"\x02" + (2**256 - 2**32 - 977).to_bytes(32, "big"),
    "x plus the field's order": b"\x02" + (2**256 - 2**32 - 977 + 1).to_bytes(32, "big"),
    "x of no point": b"\x02" + (5).to_bytes(32, "big"),
}


def run_committed(change: Callable[[keygen.Opening], keygen.Opening]) -> dict[int, Any]:
    return honest(keygen_ceremony().run(CHEATER, replaced(*committed_opening(change))))


BLAMED = {1: ("2.3", (CHEATER,), ()), 3: ("2.3", (CHEATER,), ())}


@pytest.mark.parametrize("count", [0, 1, 3, 4, 16])
def test_a_vector_of_another_length_is_refused_even_when_committed(count: int) -> None:
    """A longer vector raises the key's threshold: shares would verify, and t + 1 of them would not make the key."""
    points = tuple(SECP256K1.generate(k + 1) for k in range(count))

    def change(opening: keygen.Opening) -> keygen.Opening:
        return with_key(commitments=(opening.keys[0].commitments + points)[:count])(opening)

    assert run_committed(change) == BLAMED


def test_a_threshold_raised_with_matching_shares_is_refused() -> None:
    """A cheater of degree t + 1 with a right proof, right shares and a right commitment."""
    ceremony, random = keygen_ceremony(), seeded_random("raised")
    f = [[schnorr.random_scalar(SECP256K1, random) for _ in range(3)] for _ in range(2)]

    def prove(number: int) -> bytes:
        context = keygen._proof_context(ceremony.context, CHEATER, number)
        return schnorr.prove(SECP256K1, f[number][0], context, random)

    opening = keygen.Opening(
        bytes(32),
        tuple(
            keygen.KeyOpening(tuple(SECP256K1.generate(c) for c in f[number]), prove(number), bytes(32))
            for number in range(2)
        ),
    )
    commitment = keygen.Commitment(keygen._commitment(ceremony.context, CHEATER, opening))
    broadcasts = replaced(commitment, opening)

    def alter(message: RoundMessage, receiver: int | None) -> RoundMessage:
        if isinstance(message, keygen.Shares) and receiver is not None:
            return keygen.Shares(tuple(polynomials.evaluate(each, receiver, Q).to_bytes(32, "big") for each in f))
        return broadcasts(message, receiver)

    assert honest(ceremony.run(CHEATER, alter)) == BLAMED


@pytest.mark.parametrize("point", NO_POINTS.values(), ids=NO_POINTS)
@pytest.mark.parametrize("place", [0, 1])
def test_a_point_that_is_none_is_refused_even_when_committed(point: bytes, place: int) -> None:
    def change(opening: keygen.Opening) -> keygen.Opening:
        points = list(opening.keys[0].commitments)
        points[place] = point
        return with_key(commitments=tuple(points))(opening)

    assert run_committed(change) == BLAMED


@pytest.mark.parametrize("place", [0, 1])
def test_another_valid_point_is_refused_even_when_committed(place: int) -> None:
    def change(opening: keygen.Opening) -> keygen.Opening:
        points = list(opening.keys[0].commitments)
        points[place] = SECP256K1.add([points[place], G])
        return with_key(commitments=tuple(points))(opening)

    assert run_committed(change) == BLAMED


def test_a_rogue_key_has_no_proof() -> None:
    """`C_0 = G − Σ` of the others would make the public key `G`; knowing nobody's secret, it can't be proved."""
    kept: dict[int, keygen.Opening] = {}

    def look(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if number == 2:
            kept[sender] = msgspec.msgpack.decode(content[DIGEST_BYTES:], type=keygen.Opening)
        return content

    keygen_ceremony().run(tamper=look)
    others = SECP256K1.add([kept[1].keys[0].commitments[0], kept[3].keys[0].commitments[0]])
    rogue = SECP256K1.add([G, bytes([others[0] ^ 1]) + others[1:]])
    proofs = {"own": kept[2].keys[0].proof, "somebody's": kept[1].keys[0].proof, "none": G + (1).to_bytes(32, "big")}
    for proof in proofs.values():

        def change(opening: keygen.Opening, proof: bytes = proof) -> keygen.Opening:
            points = (rogue, opening.keys[0].commitments[1])
            return with_key(commitments=points, proof=proof)(opening)

        assert run_committed(change) == BLAMED


def test_a_copied_opening_is_refused() -> None:
    """Somebody else's opening, proof included, committed to as one's own: the proof is bound to its maker."""
    kept: dict[int, keygen.Opening] = {}

    def look(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if number == 2:
            kept[sender] = msgspec.msgpack.decode(content[DIGEST_BYTES:], type=keygen.Opening)
        return content

    keygen_ceremony().run(tamper=look)
    assert run_committed(lambda opening: kept[1]) == BLAMED


def test_swapped_keys_are_refused() -> None:
    """The proof is bound to the number of the key too."""
    assert run_committed(lambda o: msgspec.structs.replace(o, keys=(o.keys[1], o.keys[0]))) == BLAMED


def test_one_proof_for_two_keys_is_refused() -> None:
    """The same polynomial for both keys, with its right shares: only the number in the proof's context tells."""
    commitment, opening = committed_opening(lambda o: msgspec.structs.replace(o, keys=(o.keys[0], o.keys[0])))
    broadcasts = replaced(commitment, opening)

    def alter(message: RoundMessage, receiver: int | None) -> RoundMessage:
        if isinstance(message, keygen.Shares):
            return keygen.Shares((message.shares[0], message.shares[0]))
        return broadcasts(message, receiver)

    assert honest(keygen_ceremony().run(CHEATER, alter)) == BLAMED


@pytest.mark.parametrize("s", [0, Q, Q + 1, 2**256 - 1])
@pytest.mark.parametrize("point", [G, b"\0" * 33])
def test_proofs_out_of_range_are_refused(s: int, point: bytes) -> None:
    assert run_committed(with_key(proof=point + s.to_bytes(32, "big"))) == BLAMED


@pytest.mark.parametrize(
    "change",
    [with_key(chain_code_part=bytes(32)), lambda opening: msgspec.structs.replace(opening, nonce=bytes(32))],
    ids=["chain code", "nonce"],
)
def test_what_a_member_may_choose_freely_it_may_choose(change: Callable[[keygen.Opening], keygen.Opening]) -> None:
    """Nothing but a commitment binds nonce and chain-code part: the run succeeds, equally for all."""
    assert run_committed(change) == {1: "ok", 3: "ok"}


def test_shares_plus_q_are_refused() -> None:
    """The same scalar in a second encoding, wherever it fits into 32 bytes; at least: never taken for right."""

    def change(message: keygen.Shares) -> keygen.Shares:
        return keygen.Shares(tuple((Q + 1).to_bytes(32, "big") for _ in message.shares))

    outcomes = on_the_way(keygen_ceremony(), 3, lambda content: rewrite(content, keygen.Shares, change))
    assert outcomes == BLAMED


def test_swapped_shares_of_two_receivers_name_the_sender() -> None:
    kept: dict[int, bytes] = {}

    def alter(message: RoundMessage, receiver: int | None) -> RoundMessage:
        if isinstance(message, keygen.Shares) and receiver is not None:
            kept[receiver] = message.shares[0]
        return message

    keygen_ceremony().run(CHEATER, alter)

    def swap(message: RoundMessage, receiver: int | None) -> RoundMessage:
        if isinstance(message, keygen.Shares) and receiver is not None:
            return keygen.Shares((kept[4 - receiver], message.shares[1]))
        return message

    assert honest(keygen_ceremony().run(CHEATER, swap)) == BLAMED


def test_coefficients_that_cancel_lower_the_degree_and_are_refused() -> None:
    """A cheater that knew the others' second coefficients could share the key with degree 0: then every share is
    the key. It can't know them before it commits; if it did, SPEC 2.5 stops it (nobody is named)."""
    f = {j: [schnorr_scalars(j, number) for number in range(2)] for j in (1, 3)}
    ceremony, random = keygen_ceremony(), seeded_random("cancel")
    mine = [[7 + number, -sum(f[j][number][1] for j in (1, 3)) % Q] for number in range(2)]
    opening = keygen.Opening(
        bytes(32),
        tuple(
            keygen.KeyOpening(
                tuple(SECP256K1.generate(c) for c in mine[number]),
                schnorr.prove(
                    SECP256K1, mine[number][0], keygen._proof_context(ceremony.context, CHEATER, number), random
                ),
                bytes(32),
            )
            for number in range(2)
        ),
    )
    broadcasts = replaced(keygen.Commitment(keygen._commitment(ceremony.context, CHEATER, opening)), opening)

    def alter(message: RoundMessage, receiver: int | None) -> RoundMessage:
        if isinstance(message, keygen.Shares) and receiver is not None:
            return keygen.Shares(tuple(polynomials.evaluate(each, receiver, Q).to_bytes(32, "big") for each in mine))
        return broadcasts(message, receiver)

    assert honest(ceremony.run(CHEATER, alter)) == {1: ("2.5", (), ()), 3: ("2.5", (), ())}


def schnorr_scalars(member: int, number: int) -> list[int]:
    """The coefficients that an honest member of `keygen_ceremony()` draws for its key `number`."""
    random = seeded_random(f"keygen/3/1/{member}")
    every = [schnorr.random_scalar(SECP256K1, random) for _ in range(4)]
    return every[2 * number : 2 * number + 2]
