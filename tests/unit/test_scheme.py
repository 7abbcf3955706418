"""What a scheme means, against brute force over all sets of signers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import combinations, product

import pytest

from appliance.cli.scheme import parse_operators, sentences
from policies.errors import CallerError
from policies.roster import MAX_SIGNERS, Roster, RosterSigner
from policies.scheme import Power, analyse

POSSIBLE = [(n, t) for n in range(3, 8) for t in range(1, (n - 1) // 2 + 1)]


def compositions(total: int) -> Iterator[tuple[int, ...]]:
    """Every ordered way to write `total` as a sum of positive numbers."""
    for cuts in product((False, True), repeat=total - 1):
        parts = [1]
        for cut in cuts:
            if cut:
                parts.append(1)
            else:
                parts[-1] += 1
        yield tuple(parts)


def contains(signers: set[int], size: int, n: int) -> bool:
    """Whether one of all sets of `size` signers out of `n` lies within `signers`, by trying each."""
    return any(set(chosen) <= signers for chosen in combinations(range(n), size))


def brute_force(n: int, t: int, counts: dict[str, int], names: tuple[str, ...]) -> Power:
    owners = [name for name, count in counts.items() for _ in range(count)]
    held = {index for index, owner in enumerate(owners) if owner in names}
    others = set(range(n)) - held
    others_sign, others_reconstruct = contains(others, 2 * t + 1, n), contains(others, t + 1, n)
    return Power(
        operators=names,
        signers=len(held),
        signs_alone=contains(held, 2 * t + 1, n),
        reconstructs_alone=contains(held, t + 1, n),
        stops_signing=not others_sign,
        has_veto=not others_sign and not others_reconstruct,
    )


@pytest.mark.parametrize(("n", "t"), POSSIBLE)
def test_every_power_is_that_of_brute_force(n: int, t: int) -> None:
    for parts in compositions(n):
        counts = {f"op-{number}": count for number, count in enumerate(parts)}
        scheme = analyse(n, t, counts)
        assert list(scheme.operators) == [brute_force(n, t, counts, (name,)) for name in counts]
        proper = [names for size in range(2, len(counts)) for names in combinations(counts, size)]
        assert list(scheme.coalitions) == [brute_force(n, t, counts, names) for names in proper]
        assert sum(power.has_veto for power in scheme.operators) <= 1


@pytest.mark.parametrize(("n", "t"), POSSIBLE)
def test_how_many_may_be_away_is_that_of_brute_force(n: int, t: int) -> None:
    scheme = analyse(n, t)
    away = max(
        size
        for size in range(n)
        if all(contains(set(range(n)) - set(gone), 2 * t + 1, n) for gone in combinations(range(n), size))
    )
    assert scheme.may_be_away == away
    assert (scheme.online_to_sign, scheme.shares_that_reconstruct) == (2 * t + 1, t + 1)


def _roster_takes(n: int, t: int) -> bool:
    signers = tuple(
        RosterSigner(index, f"s{index}", "op", base64.b64encode(b"\x04" + bytes([index]) * 64).decode())
        for index in range(1, n + 1)
    )
    try:
        Roster(1, "net", t, signers)
    except ValueError:
        return False
    return True


def _analysed(n: int, t: int) -> bool:
    try:
        analyse(n, t)
    except CallerError:
        return False
    return True


def test_the_possible_schemes_are_those_of_a_roster() -> None:
    every = [(n, t) for n in range(1, MAX_SIGNERS + 1) for t in range(1, MAX_SIGNERS)]
    assert [scheme for scheme in every if _analysed(*scheme)] == [scheme for scheme in every if _roster_takes(*scheme)]


@pytest.mark.parametrize(
    ("n", "t", "message"),
    [
        (4, 2, "4 signers cannot tolerate 2: .* 5 signers or more; 4 tolerate at most 1"),
        (2, 1, "2 signers cannot tolerate 1: .* 3 signers or more$"),
        (3, 0, "at least 1 corrupted signer, not 0"),
        (17, 1, "at most 16 signers, not 17"),
        (16, 7, "need 6465 seeds each, and 900 are possible"),
    ],
)
def test_an_impossible_scheme_says_why(n: int, t: int, message: str) -> None:
    with pytest.raises(CallerError, match=message):
        analyse(n, t)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"A": 2, "B": 2}, "run 4 signers together, and the scheme has 5"),
        ({"A": 5, "B": 0}, "operator B runs 0 signers"),
        ({"A\n": 5}, "printable"),
    ],
)
def test_operators_run_exactly_the_signers(counts: dict[str, int], message: str) -> None:
    with pytest.raises(CallerError, match=message):
        analyse(5, 2, counts)


def test_operators_are_parsed_in_their_order() -> None:
    assert list(parse_operators(" B=3, A = 2 ").items()) == [("B", 3), ("A", 2)]
    assert parse_operators("") == {}


@pytest.mark.parametrize("text", ["A", "A=", "=2", "A=2,", "A=-1", "A=x", "A=2,A=3", "A=²", "A=99999"])
def test_other_operators_are_a_mistake(text: str) -> None:
    with pytest.raises(CallerError, match="--operators"):
        parse_operators(text)


def test_two_organisations_and_the_veto_that_is_none() -> None:
    assert list(sentences(analyse(5, 2, {"A": 2, "B": 3}))) == [
        "5 signers, tolerate 2: all 5 online to sign, 3 shares reconstruct.",
        "No signer may be away: with one away nothing is signed until it is back.",
        "Making a key needs all 5 signers online.",
        "Any 3 shares are the key: whoever takes them out of that many signers passes every policy, every gate and "
        "every audit, unseen.",
        "",
        "A (2 signers):",
        "  cannot sign alone: 5 signers must be online, and it has 2.",
        "  cannot reconstruct the key alone: that takes 3 shares.",
        "  has NO veto: without it the others (3 signers) cannot sign by the protocol, but together they hold shares "
        "that reconstruct the key.",
        "B (3 signers):",
        "  cannot sign alone: 5 signers must be online, and it has 3.",
        "  can reconstruct the key alone, and so sign past every policy and gate, its own and the others'.",
        "  has a veto: the others (2 signers) can neither sign nor reconstruct without it.",
        "",
        "Do not promise A a veto: staying away stops honest signers alone, not those who put 3 shares together.",
        "Two organisations cannot each have a veto here. Each would have to leave the others at most t shares, which "
        "takes n ≤ 2t signers; no honest-majority protocol covers that, and so Keymoot does not.",
    ]


def test_coalitions_are_told_together() -> None:
    told = list(sentences(analyse(7, 2, {"A": 2, "B": 2, "C": 3})))
    assert "Up to 2 signers may be away, and the others still sign." in told
    assert (
        "  A and B (4 signers): cannot sign alone, reconstruct alone past every policy and gate, can stop the others' "
        "signing, but have NO veto, since the others can reconstruct." in told
    )
    assert "  B and C (5 signers): sign alone, reconstruct alone past every policy and gate, have a veto." in told
