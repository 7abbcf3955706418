"""Every field of every message of setup, keygen and presigning, altered one at a time by one cheater.

The cases come from the `ROUNDS` of the protocols by inspection of the message types, the verdicts from `VERDICTS`: a
field without a verdict fails `test_every_field_has_a_verdict`. "All": a consistent cheater, who hashes what it sent.
"One" and "some": the message is altered on the way to these receivers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from enclave.errors import PeerFault
from enclave.protocol import keygen, presign, setup
from enclave.protocol.session import RoundMessage
from tests.fakes.mutations import Path, altered, fields_of
from tests.fakes.rounds import (
    Ceremony,
    Seen,
    keygen_ceremony,
    presign_ceremony,
    rewrite,
    seen,
    setup_ceremony,
)

CEREMONIES: dict[str, Callable[[int, int], Ceremony]] = {
    "setup": setup_ceremony,
    "keygen": keygen_ceremony,
    "presign": presign_ceremony,
}


@dataclass(frozen=True)
class Verdict:
    """What a step says of an alteration. `names`: `cheater`, `group` (its first group) or `nobody`.

    `later`: the check comes in a later round, so that with split views SPEC 0.5 comes first. `only_group`: only the
    members of the cheater's first group can see it.
    """

    step: str
    names: str
    later: bool = False
    only_group: bool = False


MALFORMED = Verdict("0.6", "cheater")
SIZES = {"short": MALFORMED, "long": MALFORMED}


def fixed(verdict: Verdict, **others: Verdict) -> dict[str, Verdict]:
    """Verdicts on a field of fixed size."""
    return {"flip": verdict, "zeros": verdict, "ones": verdict, **SIZES, **others}


def count(verdict: Verdict) -> dict[str, Verdict]:
    """Verdicts on a tuple with a wrong number of elements."""
    return dict.fromkeys(("drop", "extra", "empty"), verdict)


def blob(wrong: Verdict, bad: Verdict) -> dict[str, Verdict]:
    """Verdicts on m scalars in one field: other values, and values out of range or of another number."""
    return {"flip": wrong, "zeros": wrong, "ones": bad, "short": bad, "long": bad}


NAMED = {step: Verdict(step, "cheater") for step in ("1.1", "1.2", "1.3", "2.3", "2.7", "3.3", "3.4", "3.5", "3.6")}
NOBODY = {step: Verdict(step, "nobody") for step in ("2.4", "3.5", "3.7", "3.9")}
PRODUCT = Verdict("3.7", "nobody", later=True)
ACK = "acknowledgements.[].acknowledgement."

VERDICTS: dict[tuple[type[RoundMessage], str], dict[str, Verdict]] = {
    (setup.Commitments, "commitments"): count(NAMED["1.1"]),
    (setup.Commitments, "commitments.[]"): fixed(Verdict("1.2", "cheater", later=True, only_group=True)),
    (setup.Contributions, "contributions"): count(NAMED["1.2"]),
    (setup.Contributions, "contributions.[]"): fixed(NAMED["1.2"]),
    (setup.Checks, "checks"): count(NAMED["1.3"]),
    (setup.Checks, "checks.[]"): fixed(Verdict("1.3", "group")),
    (keygen.Commitment, "commitment"): fixed(Verdict("2.3", "cheater", later=True)),
    (keygen.Opening, "nonce"): fixed(NAMED["2.3"]),
    (keygen.Opening, "keys"): count(NAMED["2.3"]),
    (keygen.Opening, "keys.[].commitments"): count(NAMED["2.3"]),
    (keygen.Opening, "keys.[].commitments.[]"): fixed(NAMED["2.3"]),
    (keygen.Opening, "keys.[].proof"): fixed(NAMED["2.3"]),
    (keygen.Opening, "keys.[].chain_code_part"): fixed(NAMED["2.3"]),
    (keygen.Shares, "shares"): count(NAMED["2.3"]),
    (keygen.Shares, "shares.[]"): fixed(NAMED["2.3"]),
    (keygen.Agreement, "digest"): fixed(NOBODY["2.4"]),
    (keygen.Acknowledged, "acknowledgements"): count(NAMED["2.7"]),
    (keygen.Acknowledged, ACK + "network"): {"other": NAMED["2.7"]},
    (keygen.Acknowledged, ACK + "roster_digest"): fixed(NAMED["2.7"]),
    (keygen.Acknowledged, ACK + "key_id"): {"other": MALFORMED},
    (keygen.Acknowledged, ACK + "label"): {"other": NAMED["2.7"]},
    (keygen.Acknowledged, ACK + "curve"): {"other": MALFORMED},
    (keygen.Acknowledged, ACK + "public_key"): fixed(NAMED["2.7"]),
    (keygen.Acknowledged, ACK + "public_shares"): count(NAMED["2.7"]),
    (keygen.Acknowledged, ACK + "public_shares.[]"): fixed(NAMED["2.7"]),
    (keygen.Acknowledged, ACK + "chain_code"): fixed(NAMED["2.7"]),
    (keygen.Acknowledged, ACK + "tolerate"): {"other": NAMED["2.7"]},
    (keygen.Acknowledged, ACK + "key_epoch"): {"other": NAMED["2.7"]},
    (keygen.Acknowledged, ACK + "index"): {"other": NAMED["2.7"]},
    (keygen.Acknowledged, "acknowledgements.[].signature"): fixed(NAMED["2.7"]),
    (presign.Products, "commitments"): count(NAMED["3.3"]),
    (presign.Products, "commitments.[]"): fixed(Verdict("3.3", "group")),
    (presign.Products, "e_w"): blob(PRODUCT, NAMED["3.3"]),
    (presign.Products, "e_mu"): blob(PRODUCT, NAMED["3.3"]),
    (presign.CheckProducts, "e_tau"): blob(PRODUCT, NAMED["3.4"]),
    (presign.Challenges, "rho"): fixed(NOBODY["3.5"], ones=NAMED["3.5"]),
    (presign.Challenges, "beta"): fixed(NOBODY["3.5"], ones=NAMED["3.5"]),
    (presign.Openings, "T"): fixed(NOBODY["3.7"], ones=NAMED["3.6"]),
    (presign.Openings, "w"): blob(NOBODY["3.7"], NAMED["3.6"]),
    (presign.Openings, "R"): blob(NAMED["3.6"], NAMED["3.6"]),
    (presign.Confirmation, "digest"): fixed(NOBODY["3.9"]),
}


@dataclass(frozen=True)
class Case:
    """One alteration of one field."""

    ceremony: str
    number: int
    kind: type[RoundMessage]
    path: Path
    mutation: str
    change: Callable[[Any], Any]

    def __str__(self) -> str:
        return f"{self.ceremony}-{self.kind.__name__}.{'.'.join(self.path)}-{self.mutation}"


CASES = [
    Case(name, number, kind, path, mutation, change)
    for name, module in (("setup", setup), ("keygen", keygen), ("presign", presign))
    for number, kind in enumerate(module.ROUNDS, 1)
    for path, mutations in fields_of(kind)
    for mutation, change in mutations.items()
]


@cache
def ceremony(name: str, n: int, t: int) -> Ceremony:
    return CEREMONIES[name](n, t)


def test_every_field_has_a_verdict() -> None:
    cases = {(case.kind, ".".join(case.path), case.mutation) for case in CASES}
    assert cases == {(kind, path, mutation) for (kind, path), each in VERDICTS.items() for mutation in each}


@pytest.mark.parametrize("name", CEREMONIES)
@pytest.mark.parametrize(("n", "t"), [(3, 1), (5, 2)])
def test_unaltered_runs_succeed(name: str, n: int, t: int) -> None:
    assert {seen(outcome) for outcome in ceremony(name, n, t).run().values()} == {"ok"}


def fault(verdict: Verdict, cheater: int, group: tuple[int, ...]) -> Seen:
    named = {"cheater": ((cheater,), ()), "group": ((), group), "nobody": ((), ())}[verdict.names]
    return (verdict.step, *named)


@pytest.mark.parametrize(("n", "t", "cheater", "group"), [(3, 1, 2, (1, 2)), (5, 2, 4, (1, 2, 4))])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_altered_to_all(case: Case, n: int, t: int, cheater: int, group: tuple[int, ...]) -> None:
    def alter(message: RoundMessage, receiver: int | None) -> RoundMessage:
        return altered(message, case.path, case.change) if type(message) is case.kind else message

    outcomes = ceremony(case.ceremony, n, t).run(cheater, alter)
    verdict = VERDICTS[case.kind, ".".join(case.path)][case.mutation]
    expected = {
        # Whoever can't see it waits for those that stopped.
        j: None if verdict.only_group and j not in group else fault(verdict, cheater, group)
        for j in outcomes
        if j != cheater
    }
    assert {j: seen(outcome) for j, outcome in outcomes.items() if j != cheater} == expected


@pytest.mark.parametrize(
    ("n", "t", "cheater", "group", "victims"), [(3, 1, 2, (1, 2), (1,)), (5, 2, 4, (1, 2, 4), (1, 2))]
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_altered_to_some(
    case: Case, n: int, t: int, cheater: int, group: tuple[int, ...], victims: tuple[int, ...]
) -> None:
    def tamper(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if (sender, number) == (cheater, case.number) and receiver in victims:
            return rewrite(content, case.kind, lambda message: altered(message, case.path, case.change))
        return content

    running = ceremony(case.ceremony, n, t)
    outcomes = running.run(cheater, tamper=tamper)
    verdict = VERDICTS[case.kind, ".".join(case.path)][case.mutation]
    spared = "ok" if case.number == len(running.rounds) else None
    for j, outcome in outcomes.items():
        if j == cheater:
            continue
        if verdict.later:
            assert seen(outcome) == ("0.5", (), ())
        else:
            assert seen(outcome) == (fault(verdict, cheater, group) if j in victims else spared)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_cheaters_alter_the_same_field(case: Case) -> None:
    """`t` cheaters at once: nobody honest is named, and nobody finishes."""
    cheaters = (4, 5)

    def tamper(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if sender in cheaters and receiver not in cheaters and number == case.number:
            return rewrite(content, case.kind, lambda message: altered(message, case.path, case.change))
        return content

    outcomes = ceremony(case.ceremony, 5, 2).run(tamper=tamper, cheaters=cheaters)
    verdict = VERDICTS[case.kind, ".".join(case.path)][case.mutation]
    for j in (1, 2, 3):
        outcome = outcomes[j]
        assert isinstance(outcome, PeerFault) or (outcome is None and verdict.only_group)
        if outcome is not None and not verdict.later:
            assert outcome.step == verdict.step
            assert bool(outcome.culprits) == (verdict.names == "cheater")
