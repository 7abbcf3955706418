"""What `t` cheaters of five can do together that one alone cannot: each consistent with its lie and the other's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from enclave.crypto import polynomials, schnorr
from enclave.crypto.curve import SECP256K1
from enclave.protocol import keygen, presign
from enclave.protocol.session import RoundMessage
from policies.transcript import DIGEST_BYTES
from tests.adversarial.test_presign_cheats import T_WRONG, plus, shifted
from tests.fakes.network import seeded_random
from tests.fakes.rounds import Alter, Ceremony, CheatingSession, honest_seeds, keygen_ceremony, presign_ceremony, seen

Q = SECP256K1.q
HONEST, CHEATERS = (1, 3, 5), (2, 4)
EVERYBODY = (1, 2, 3, 4, 5)
Change = Callable[[int, RoundMessage], RoundMessage]


def together(ceremony: Ceremony, alter: Callable[[int, RoundMessage, int | None], RoundMessage]) -> dict[int, Any]:
    """Honest outcomes where both cheaters alter what they send, and hold what they sent."""
    plain = ceremony.network

    def network() -> Any:
        made = plain()
        for j in CHEATERS:
            session = CheatingSession(ceremony.context, j, ceremony.members, ceremony.rounds, made._transmit(j))
            session.alter = altering(j)
            made.sessions[j] = session
        return made

    def altering(j: int) -> Alter:
        return lambda message, receiver: alter(j, message, receiver)

    object.__setattr__(ceremony, "network", network)
    outcomes = ceremony.run(cheaters=CHEATERS)
    return {j: outcomes[j] for j in HONEST}


def fields(**changes: Callable[[int, Any], Any]) -> Callable[[int, RoundMessage, int | None], RoundMessage]:
    """Alters fields by name: `e_w=lambda j, data: …` for cheater `j`."""

    def alter(j: int, message: RoundMessage, receiver: int | None) -> RoundMessage:
        mine = {name: change(j, getattr(message, name)) for name, change in changes.items() if hasattr(message, name)}
        return msgspec.structs.replace(message, **mine)

    return alter


def all_see(outcomes: dict[int, Any], step: str, reason: str) -> None:
    assert {j: (seen(outcome), outcome.reason) for j, outcome in outcomes.items()} == dict.fromkeys(
        HONEST, ((step, (), ()), reason)
    )


def cancelling(error: int) -> dict[int, int]:
    """Errors of the two cheaters that cancel in the value at zero over all five."""
    weights = polynomials.lagrange(EVERYBODY).numerators
    other = -error * weights[CHEATERS[0]] * pow(weights[CHEATERS[1]], -1, Q) % Q
    return {CHEATERS[0]: error % Q, CHEATERS[1]: other}


# --- SPEC 3 ---


@pytest.mark.parametrize("errors", [{2: 1, 4: 1}, {2: 5, 4: Q - 5}, {2: 2**200, 4: 3}])
@pytest.mark.parametrize("product", ["e_w", "e_mu", "e_tau"])
def test_errors_of_both_in_one_product_make_T_nonzero(product: str, errors: dict[int, int]) -> None:
    change = fields(**{product: lambda j, data: plus(data, 1, errors[j])})
    all_see(together(presign_ceremony(5, 2), change), "3.7", T_WRONG)


@pytest.mark.parametrize("product", ["e_w", "e_mu", "e_tau"])
def test_errors_that_cancel_in_the_product_harm_nothing(product: str) -> None:
    """The masks let cheaters choose their points of a degree-2t sharing of the right value: the batch is right."""
    outcomes = together(presign_ceremony(5, 2), fields(**{product: lambda j, data: plus(data, 1, cancelling(77)[j])}))
    right = presign_ceremony(5, 2).run()
    assert {j: outcome.points for j, outcome in outcomes.items()} == {j: right[j].points for j in HONEST}
    assert {j: outcome.inverse_shares for j, outcome in outcomes.items()} == {
        j: right[j].inverse_shares for j in HONEST
    }


def test_errors_split_between_products_and_presignatures_do_not_cancel() -> None:
    """One cheats in `w`, the other in `τ`; or in two presignatures with opposite signs."""
    for change in (
        fields(
            e_w=lambda j, data: plus(data, 1, 5 * (j == 2)),
            e_tau=lambda j, data: plus(data, 1, 5 * (j == 4)),
        ),
        fields(e_w=lambda j, data: plus(data, 1 + (j == 4), 5 if j == 2 else -5)),
        fields(e_mu=lambda j, data: plus(data, 1, 9), e_tau=lambda j, data: plus(data, 2, -9)),
    ):
        all_see(together(presign_ceremony(5, 2), change), "3.7", T_WRONG)


def test_knowing_rho_beforehand_would_defeat_the_check_for_five_too() -> None:
    """Two cheaters' own shares of `ρ` don't give it: only the honest ones' third share, opened in round 3, does."""
    ceremony = presign_ceremony(5, 2)
    shares: dict[int, int] = {}

    def look(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if number == 3:
            opened = msgspec.msgpack.decode(content[DIGEST_BYTES:], type=presign.Challenges)
            shares[sender] = int.from_bytes(opened.rho, "big")
        return content

    ceremony.run(tamper=look)
    rho = polynomials.interpolate({j: shares[j] for j in EVERYBODY[:3]}, Q)
    guess = polynomials.interpolate({j: shares[j] for j in CHEATERS}, Q)  # as if the degree were one less
    weights = polynomials.lagrange(EVERYBODY)
    scale = pow(weights.denominator, -1, Q)

    def change(known: int) -> Callable[[int, RoundMessage, int | None], RoundMessage]:
        """An error in `w` by one, and in `τ` by the other, that cancel in `τ − ρ·w` if `ρ` is `known`."""
        into_w = 5 * weights.numerators[2] * scale
        into_tau = known * into_w * pow(weights.numerators[4] * scale, -1, Q)
        return fields(
            e_w=lambda j, data: plus(data, 1, 5) if j == 2 else data,
            e_tau=lambda j, data: plus(data, 1, into_tau) if j == 4 else data,
        )

    assert {seen(outcome) for outcome in together(presign_ceremony(5, 2), change(rho)).values()} == {"ok"}
    all_see(together(presign_ceremony(5, 2), change(guess)), "3.7", T_WRONG)


@pytest.mark.parametrize("scalars", [{2: 1, 4: 1}, {2: 3, 4: -3}, cancelling(11)])
def test_errors_of_both_in_one_nonce_point_end_the_batch(scalars: dict[int, int]) -> None:
    """Also those that cancel in the point at zero: every honest member is then off the polynomial."""
    outcomes = together(presign_ceremony(5, 2), fields(R=lambda j, data: shifted(data, 1, scalars[j])))
    all_see(outcomes, "3.7", "R is not on degree t")


def test_errors_in_two_points_that_cancel_under_public_coefficients_end_the_batch() -> None:
    ceremony = presign_ceremony(5, 2)
    shares: dict[int, int] = {}

    def look(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if number == 3:
            opened = msgspec.msgpack.decode(content[DIGEST_BYTES:], type=presign.Challenges)
            shares[sender] = int.from_bytes(opened.beta, "big")
        return content

    ceremony.run(tamper=look)
    beta = polynomials.interpolate({j: shares[j] for j in EVERYBODY[:3]}, Q)
    change = fields(R=lambda j, data: shifted(data, 1, beta) if j == 2 else shifted(data, 2, -1))
    all_see(together(presign_ceremony(5, 2), change), "3.7", "R is not on degree t")


@pytest.mark.parametrize(
    ("field", "step", "reason"),
    [
        ("rho", "3.5", "ρ is not on degree t"),
        ("beta", "3.5", "β is not on degree t"),
        ("T", "3.7", "T is not on degree t"),
        ("w", "3.7", "w is not on degree t"),
    ],
)
def test_openings_of_a_higher_degree(field: str, step: str, reason: str) -> None:
    """Errors of both, also such as cancel at zero: with three honest points, degree 2 leaves no freedom."""
    for errors in ({2: 1, 4: 2}, cancelling(3)):
        change = fields(**{field: lambda j, data, errors=errors: plus(data, 1, errors[j])})
        all_see(together(presign_ceremony(5, 2), change), step, reason)


def test_two_commitments_to_other_sub_seeds_name_a_group_with_a_cheater() -> None:
    """Both lie alike about every group they share: where an honest member is in it, it is named."""
    change = fields(commitments=lambda j, data: (bytes(32), *data[1:]))
    outcomes = together(presign_ceremony(5, 2), change)
    for outcome in outcomes.values():
        step, culprits, subset = seen(outcome)  # type: ignore[misc]
        assert (step, culprits) == ("3.3", ())
        assert set(subset) & set(CHEATERS)
        assert set(subset) & set(HONEST)


def test_what_two_of_five_know_of_a_nonce_says_nothing() -> None:
    """With the sub-seeds of both cheaters, the seed of the three honest ones is missing: any nonce fits."""
    seeds = honest_seeds(5, 2)
    known = {group for j in CHEATERS for group in seeds[j].groups if group.purpose == "subset"}
    every = {group for j in EVERYBODY for group in seeds[j].groups if group.purpose == "subset"}
    assert {group.members for group in every - known} == {HONEST}


# --- SPEC 2 ---


def test_a_rogue_key_of_two_has_no_proofs() -> None:
    """Together they choose `C_0` so that the key would be `G`; neither can prove it, and the first is named."""
    kept: dict[int, keygen.Opening] = {}

    def look(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if number == 2:
            kept[sender] = msgspec.msgpack.decode(content[DIGEST_BYTES:], type=keygen.Opening)
        return content

    ceremony = keygen_ceremony(5, 2)
    ceremony.run(tamper=look)

    def forged(j: int) -> keygen.Opening:
        own = kept[j].keys[0]
        others = [kept[i].keys[0].commitments[0] for i in HONEST]
        wanted = SECP256K1.generate(1 if j == 2 else 2)
        rogue = SECP256K1.add([wanted, *(negated(point) for point in others)])
        key = msgspec.structs.replace(own, commitments=(rogue, *own.commitments[1:]))
        return msgspec.structs.replace(kept[j], keys=(key, *kept[j].keys[1:]))

    def alter(j: int, message: RoundMessage, receiver: int | None) -> RoundMessage:
        if isinstance(message, keygen.Commitment):
            return keygen.Commitment(keygen._commitment(ceremony.context, j, forged(j)))
        return forged(j) if isinstance(message, keygen.Opening) else message

    outcomes = together(keygen_ceremony(5, 2), alter)
    assert {j: seen(outcome) for j, outcome in outcomes.items()} == dict.fromkeys(HONEST, ("2.3", (2,), ()))


def negated(point: bytes) -> bytes:
    return bytes([point[0] ^ 1]) + point[1:]


def test_two_that_raise_the_threshold_with_matching_shares_are_refused() -> None:
    """Both of degree t + 1, all proofs and shares right: the vectors' length tells, before any share is looked at."""
    ceremony, random = keygen_ceremony(5, 2), seeded_random("raised")
    f = {j: [[schnorr.random_scalar(SECP256K1, random) for _ in range(4)] for _ in range(2)] for j in CHEATERS}

    def opening(j: int) -> keygen.Opening:
        def prove(number: int) -> bytes:
            context = keygen._proof_context(ceremony.context, j, number)
            return schnorr.prove(SECP256K1, f[j][number][0], context, seeded_random(f"proof/{j}/{number}"))

        return keygen.Opening(
            bytes(32),
            tuple(
                keygen.KeyOpening(tuple(SECP256K1.generate(c) for c in f[j][number]), prove(number), bytes(32))
                for number in range(2)
            ),
        )

    def alter(j: int, message: RoundMessage, receiver: int | None) -> RoundMessage:
        if isinstance(message, keygen.Commitment):
            return keygen.Commitment(keygen._commitment(ceremony.context, j, opening(j)))
        if isinstance(message, keygen.Opening):
            return opening(j)
        if isinstance(message, keygen.Shares) and receiver is not None:
            return keygen.Shares(tuple(polynomials.evaluate(each, receiver, Q).to_bytes(32, "big") for each in f[j]))
        return message

    outcomes = together(keygen_ceremony(5, 2), alter)
    assert {j: seen(outcome) for j, outcome in outcomes.items()} == dict.fromkeys(HONEST, ("2.3", (2,), ()))


def test_shares_that_two_give_wrongly_to_one_name_the_first_there_alone() -> None:
    """The others go on to the next round, and wait for the one that stopped."""

    def alter(j: int, message: RoundMessage, receiver: int | None) -> RoundMessage:
        if isinstance(message, keygen.Shares) and receiver == 3:
            return keygen.Shares((plus(message.shares[0], 1, 1), *message.shares[1:]))
        return message

    outcomes = together(keygen_ceremony(5, 2), alter)
    assert {j: seen(outcome) for j, outcome in outcomes.items()} == {1: None, 3: ("2.3", (2,), ()), 5: None}
