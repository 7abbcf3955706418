"""Presigning (SPEC 3) with values that are right in form and wrong: the step made for it stops each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from coincurve import PublicKey

from enclave.crypto import polynomials
from enclave.crypto.curve import SECP256K1, compress
from enclave.errors import PeerFault
from enclave.protocol import presign
from enclave.protocol.session import RoundMessage
from policies.errors import KeymootError
from policies.transcript import DIGEST_BYTES
from tests.fakes.rounds import CHEATER, Ceremony, presign_ceremony, rewrite, seen

Q = SECP256K1.q


def plus(data: bytes, l: int, error: int) -> bytes:
    """A column with `error` added to value `l` (1-based)."""
    value = (int.from_bytes(data[32 * (l - 1) : 32 * l], "big") + error) % Q
    return data[: 32 * (l - 1)] + value.to_bytes(32, "big") + data[32 * l :]


def shifted(data: bytes, l: int, scalar: int) -> bytes:
    """Points with `scalar·G` added to point `l` (1-based)."""
    affine = data[64 * (l - 1) : 64 * l]
    point = SECP256K1.add([compress(affine), SECP256K1.generate(scalar % Q)])
    return data[: 64 * (l - 1)] + PublicKey(point).format(compressed=False)[1:] + data[64 * l :]


def cheat(ceremony: Ceremony, cheater: int = CHEATER, **changes: Callable[[Any], Any]) -> dict[int, Any]:
    """Honest outcomes with a consistent cheater that changes fields by name: `e_w=...`, `R=...`."""

    def alter(message: RoundMessage, receiver: int | None) -> RoundMessage:
        mine = {name: change(getattr(message, name)) for name, change in changes.items() if hasattr(message, name)}
        return msgspec.structs.replace(message, **mine)

    return {j: o for j, o in ceremony.run(cheater, alter).items() if j != cheater}


def all_end(outcomes: dict[int, Any], step: str, reason: str) -> None:
    for outcome in outcomes.values():
        assert isinstance(outcome, KeymootError)
        assert (seen(outcome), outcome.reason) == ((step, (), ()), reason)


T_WRONG = "T is not zero: a product was manipulated"


@pytest.mark.parametrize("cheater", [1, 2, 3])
@pytest.mark.parametrize("l", [1, 3])
@pytest.mark.parametrize("error", [1, Q - 1, 2**200 + 17])
@pytest.mark.parametrize("product", ["e_w", "e_mu", "e_tau"])
def test_an_error_in_one_product_makes_T_nonzero(product: str, error: int, l: int, cheater: int) -> None:
    all_end(cheat(presign_ceremony(), cheater, **{product: lambda data: plus(data, l, error)}), "3.7", T_WRONG)


@pytest.mark.parametrize("product", ["e_w", "e_mu", "e_tau"])
def test_errors_of_opposite_sign_in_two_presignatures_do_not_cancel(product: str) -> None:
    """`T` weighs presignature `l` with `β^l`, unknown when the errors are made."""
    outcomes = cheat(presign_ceremony(), **{product: lambda data: plus(plus(data, 1, 5), 2, -5)})
    all_end(outcomes, "3.7", T_WRONG)


def test_errors_in_two_products_that_fit_each_other_do_not_cancel() -> None:
    """`τ − ρ·w`: equal errors in `w` and `τ` cancel only for a cheater who knows `ρ` beforehand."""
    outcomes = cheat(presign_ceremony(), e_w=lambda d: plus(d, 1, 5), e_tau=lambda d: plus(d, 1, 5))
    all_end(outcomes, "3.7", T_WRONG)


def test_knowing_rho_beforehand_would_defeat_the_check() -> None:
    """Why `ρ` is opened late (SPEC 3.5): with it, the error in `τ` can be chosen to cancel that in `w`, and `T` says
    nothing. The errors stay consistent, so this run succeeds: the order of rounds is what protects."""
    ceremony = presign_ceremony()
    rho: dict[int, int] = {}

    def look(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if number == 3:
            challenge = msgspec.msgpack.decode(content[DIGEST_BYTES:], type=presign.Challenges)
            rho[sender] = int.from_bytes(challenge.rho, "big")
        return content

    ceremony.run(tamper=look)
    known = polynomials.interpolate(rho, Q)
    outcomes = cheat(ceremony, e_w=lambda d: plus(d, 1, 5), e_tau=lambda d: plus(d, 1, 5 * known))
    assert {j: seen(outcome) for j, outcome in outcomes.items()} == {1: "ok", 3: "ok"}


@pytest.mark.parametrize("l", [1, 2, 3])
def test_a_wrong_nonce_point_ends_the_batch(l: int) -> None:
    all_end(cheat(presign_ceremony(), R=lambda data: shifted(data, l, 1)), "3.7", "R is not on degree t")


def test_errors_in_nonce_points_that_cancel_in_a_sum_end_the_batch() -> None:
    """Opposite errors in two presignatures: any check of the sum of the points would pass."""
    outcomes = cheat(presign_ceremony(), R=lambda data: shifted(shifted(data, 1, 9), 2, -9))
    all_end(outcomes, "3.7", "R is not on degree t")


def test_errors_weighted_by_the_public_challenge_end_the_batch() -> None:
    """Errors that would cancel under the coefficients `β^l`, public by now."""
    ceremony = presign_ceremony()
    beta: dict[int, int] = {}

    def look(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if number == 3:
            challenge = msgspec.msgpack.decode(content[DIGEST_BYTES:], type=presign.Challenges)
            beta[sender] = int.from_bytes(challenge.beta, "big")
        return content

    ceremony.run(tamper=look)
    value = polynomials.interpolate(beta, Q)
    outcomes = cheat(ceremony, R=lambda data: shifted(shifted(data, 1, value), 2, -1))
    all_end(outcomes, "3.7", "R is not on degree t")


def test_swapped_nonce_points_end_the_batch() -> None:
    outcomes = cheat(presign_ceremony(), R=lambda data: data[64:128] + data[:64] + data[128:])
    all_end(outcomes, "3.7", "R is not on degree t")


def test_a_negated_nonce_point_ends_the_batch() -> None:
    """The same x, so the same `r`: only a check of whole points sees it."""

    def negate(data: bytes) -> bytes:
        y = 2**256 - 2**32 - 977 - int.from_bytes(data[32:64], "big")
        return data[:32] + y.to_bytes(32, "big") + data[64:]

    all_end(cheat(presign_ceremony(), R=negate), "3.7", "R is not on degree t")


@pytest.mark.parametrize("cheater", [1, 2, 3])
@pytest.mark.parametrize(
    ("field", "step", "reason"),
    [
        ("rho", "3.5", "ρ is not on degree t"),
        ("beta", "3.5", "β is not on degree t"),
        ("T", "3.7", "T is not on degree t"),
    ],
)
def test_an_inconsistent_share_of_an_opened_value(field: str, step: str, reason: str, cheater: int) -> None:
    all_end(cheat(presign_ceremony(), cheater, **{field: lambda data: plus(data, 1, 1)}), step, reason)


@pytest.mark.parametrize("cheater", [1, 2, 3])
@pytest.mark.parametrize("l", [1, 2, 3])
def test_an_inconsistent_share_of_w(l: int, cheater: int) -> None:
    all_end(cheat(presign_ceremony(), cheater, w=lambda data: plus(data, l, 1)), "3.7", "w is not on degree t")


@pytest.mark.parametrize(
    ("field", "step"),
    [("e_w", "3.3"), ("e_mu", "3.3"), ("e_tau", "3.4"), ("rho", "3.5"), ("beta", "3.5"), ("T", "3.6"), ("w", "3.6")],
)
@pytest.mark.parametrize("value", [Q, 2**256 - 1])
def test_scalars_of_q_and_more_name_their_sender(field: str, step: str, value: int) -> None:
    outcomes = cheat(presign_ceremony(), **{field: lambda data: data[:-32] + value.to_bytes(32, "big")})
    assert {j: seen(outcome) for j, outcome in outcomes.items()} == dict.fromkeys((1, 3), (step, (CHEATER,), ()))


@pytest.mark.parametrize("cheaters", [(1, 2), (4, 5), (2, 4)])
def test_two_cheaters_of_five_with_opposite_errors_in_one_point(cheaters: tuple[int, int]) -> None:
    """`t` cheaters whose errors add up to nothing: the relations weigh members differently."""
    first = cheaters[0]
    ceremony = presign_ceremony(5, 2)

    def tamper(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if number == 4 and sender in cheaters and receiver not in cheaters:
            sign = 1 if sender == first else -1
            change = lambda m: msgspec.structs.replace(m, R=shifted(m.R, 1, sign * 3))  # noqa: E731
            return rewrite(content, presign.Openings, change)
        return content

    outcomes = ceremony.run(tamper=tamper, cheaters=cheaters)
    for j in set(ceremony.members) - set(cheaters):
        assert seen(outcomes[j]) == ("3.7", (), ())


# --- SPEC 3.7 on openings that no cheater can bring about in a run: the checks hold by themselves ---


def openings(w: list[list[int]], k: list[list[int]], T: int = 0) -> dict[int, presign.Openings]:
    """What three members open of shares of these polynomials (t = 1), one of `w` and one of `k` a presignature."""

    def column(each: list[list[int]], j: int) -> list[int]:
        return [polynomials.evaluate(f, j, Q) for f in each]

    return {
        j: presign.Openings(
            T.to_bytes(32, "big"),
            b"".join(value.to_bytes(32, "big") for value in column(w, j)),
            b"".join(PublicKey(SECP256K1.generate(value)).format(compressed=False)[1:] for value in column(k, j)),
        )
        for j in (1, 2, 3)
    }


def test_right_openings_pass() -> None:
    right = openings([[5, 7], [6, Q - 1]], [[3, 4], [9, 2]])
    assert presign.verify_products((1, 2, 3), 1, 2, right, Q) == [5, 6]
    points = presign.verify_points(SECP256K1, (1, 2, 3), 1, 2, right)
    assert [compress(points[:64]), compress(points[64:])] == [SECP256K1.generate(3), SECP256K1.generate(9)]


def test_a_w_of_zero_is_refused() -> None:
    with pytest.raises(PeerFault, match="a w is zero") as caught:
        presign.verify_products((1, 2, 3), 1, 2, openings([[5, 7], [0, 7]], [[3, 4], [9, 2]]), Q)
    assert seen(caught.value) == ("3.7", (), ())


def test_a_T_other_than_zero_on_degree_t_is_refused() -> None:
    with pytest.raises(PeerFault, match="T is not zero") as caught:
        presign.verify_products((1, 2, 3), 1, 1, openings([[5, 7]], [[3, 4]], T=1), Q)
    assert seen(caught.value) == ("3.7", (), ())


def test_a_nonce_point_at_infinity_is_refused() -> None:
    with pytest.raises(PeerFault, match="identity") as caught:
        presign.verify_points(SECP256K1, (1, 2, 3), 1, 2, openings([[5, 7], [6, 7]], [[3, 4], [0, 2]]))
    assert seen(caught.value) == ("3.7", (), ())


def test_w_and_R_of_degree_two_are_refused() -> None:
    """All shares consistent, of a polynomial of degree 2t: no single share is wrong, the degree is."""
    with pytest.raises(PeerFault, match="w is not on degree t"):
        presign.verify_products((1, 2, 3), 1, 1, openings([[5, 7, 1]], [[3, 4]]), Q)
    with pytest.raises(PeerFault, match="R is not on degree t"):
        presign.verify_points(SECP256K1, (1, 2, 3), 1, 1, openings([[5, 7]], [[3, 4, 1]]))
