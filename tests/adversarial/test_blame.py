"""Every field of every message altered (as in `test_fields`), and the members find out who did it: the exact culprit,
the exact group where only a group can be named (SPEC 1.3, 3.3), never an honest name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from enclave.protocol.blame import Outcome
from enclave.protocol.session import RoundMessage
from tests.adversarial.test_fields import CASES, Case
from tests.fakes.accountable import Court, court
from tests.fakes.mutations import altered
from tests.fakes.rounds import CHEATER, rewrite

# Where only the group can be named: what its members say of their common seed.
SPLITS = {("Checks", ("checks", "[]")), ("Products", ("commitments", "[]"))}
SIZES = ("short", "long")


def is_split(case: Case) -> bool:
    """Whether this alteration, told to everybody alike, is one of two words in a group."""
    return (case.kind.__name__, case.path) in SPLITS and case.mutation not in SIZES


def told(court: Court, cheaters: set[int]) -> dict[int, Any]:
    """(culprits, group, silent) by honest member; the deadline passes for those that still wait."""
    outcomes = court.run()
    if any(outcomes[j] is None for j in set(outcomes) - cheaters):
        outcomes = court.end()
    court.check(cheaters)
    honest = {j: outcome for j, outcome in outcomes.items() if j not in cheaters}
    return {
        j: (outcome.culprits, outcome.subset, outcome.silent) if isinstance(outcome, Outcome) else outcome
        for j, outcome in honest.items()
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_altered_to_all_names_the_culprit(case: Case) -> None:
    def alter(message: RoundMessage, receiver: int | None) -> RoundMessage:
        return altered(message, case.path, case.change) if type(message) is case.kind else message

    expected = ((), (1, 2), ()) if is_split(case) else ((CHEATER,), (), ())
    assert told(court(case.ceremony, m=2, alters={CHEATER: alter}), {CHEATER}) == {1: expected, 3: expected}


@pytest.mark.parametrize("victim", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_altered_to_one_names_the_culprit(case: Case, victim: int) -> None:
    def cheat(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if (sender, receiver, number) == (CHEATER, victim, case.number):
            return rewrite(content, case.kind, lambda message: altered(message, case.path, case.change))
        return content

    running = court(case.ceremony, m=2)
    running.cheat = cheat
    expected = ((CHEATER,), (), ())
    assert told(running, {CHEATER}) == {1: expected, 3: expected}


def first_of_each_field() -> Iterator[Any]:
    """One alteration of each field in every check, the others in the long run."""
    seen = set()
    for case in CASES:
        field = (case.kind, case.path)
        yield pytest.param(case, id=str(case), marks=[pytest.mark.slow] if field in seen else [])
        seen.add(field)


@pytest.mark.parametrize("victims", [(), (1,)], ids=["all", "one"])
@pytest.mark.parametrize("case", first_of_each_field())
def test_two_cheaters_of_five(case: Case, victims: tuple[int, ...]) -> None:
    """Both alter the same field, to all or to one: each honest member convicts one of them at least, or the group."""
    cheaters = {4, 5}

    def alter(message: RoundMessage, receiver: int | None) -> RoundMessage:
        return altered(message, case.path, case.change) if type(message) is case.kind else message

    def cheat(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if sender in cheaters and receiver in victims and number == case.number:
            return rewrite(content, case.kind, lambda message: altered(message, case.path, case.change))
        return content

    running = court(case.ceremony, 5, 2, 1, {} if victims else dict.fromkeys(cheaters, alter))
    running.cheat = cheat
    for culprits, group, silent in told(running, cheaters).values():
        assert bool(culprits) != bool(group)
        assert bool(group) == (is_split(case) and not victims)
        assert silent == ()


@pytest.mark.parametrize("to", [1, 3, None])
@pytest.mark.parametrize(
    ("name", "number"),
    [(name, number) for name, count in (("setup", 4), ("keygen", 5), ("presign", 5)) for number in range(1, count + 1)],
)
def test_wrong_views_name_the_culprit(name: str, number: int, to: int | None) -> None:
    """The cheater says that it saw other bodies than it did, to one or to all."""

    def cheat(sender: int, receiver: int, at: int, content: bytes) -> bytes:
        if sender == CHEATER and at == number and to in (None, receiver):
            return bytes([content[0] ^ 1]) + content[1:]
        return content

    running = court(name, m=1)
    running.cheat = cheat
    expected = ((CHEATER,), (), ())
    assert told(running, {CHEATER}) == {1: expected, 3: expected}
