"""Every field of every message altered (as in `test_fields`), and the members find out who did it: the exact culprit,
the exact group where only a group can be named (SPEC 1.3, 3.3), never an honest name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from enclave.bodies import BROADCAST
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
@pytest.mark.parametrize("case", list(first_of_each_field()))
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


@pytest.mark.parametrize("to", [1, 3, None])
@pytest.mark.parametrize("extra", [0, 9, 50, 100, 104, 255])
@pytest.mark.parametrize("name", ["setup", "keygen", "presign"])
def test_a_body_of_a_round_that_does_not_exist_names_its_sender(name: str, extra: int, to: int | None) -> None:
    """Beside its right second body the cheater signs one for a round that there is not."""
    running = court(name, m=1)

    def cheat(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if (sender, number) == (CHEATER, 2) and to in (None, receiver):
            body = running.sign(CHEATER, extra, BROADCAST, content)
            running.queue.append((receiver, (extra, CHEATER, BROADCAST, content, body.signature)))
        return content

    running.cheat = cheat
    expected = ((CHEATER,), (), ())
    assert told(running, {CHEATER}) == {1: expected, 3: expected}


@pytest.mark.parametrize("to", [1, None])
@pytest.mark.parametrize("early", [101, 102, 103])
@pytest.mark.parametrize("name", ["setup", "keygen", "presign"])
def test_garbage_for_a_round_of_blame_names_its_sender(name: str, early: int, to: int | None) -> None:
    """Nobody has stopped yet. A stop that is none convicts; views and closings before a stop are not looked at, and
    the ceremony ends well."""
    running = court(name, m=1)

    def cheat(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if (sender, number) == (CHEATER, 2) and to in (None, receiver):
            body = running.sign(CHEATER, early, BROADCAST, content)
            running.queue.append((receiver, (early, CHEATER, BROADCAST, content, body.signature)))
        return content

    running.cheat = cheat
    outcomes = running.run()
    running.check({CHEATER})
    if early == 101:
        assert {j: outcomes[j].culprits for j in (1, 3)} == {1: (CHEATER,), 3: (CHEATER,)}
    else:
        assert outcomes == {1: None, 2: None, 3: None}
        assert [len(party.delivered) for party in running.parties.values()] == [1, 1, 1]


@pytest.mark.parametrize("to", [1, 3, None])
@pytest.mark.parametrize("name", ["setup", "keygen", "presign"])
def test_a_round_twice_or_left_out_names_nobody_honest(name: str, to: int | None) -> None:
    """SPEC 0.6: whoever sees it names the cheater, and can't prove it to a member that has not seen it."""
    for number in range(1, len(court(name, m=1).rules.rounds) + 1):
        for again in (True, False):
            running = court(name, m=1)

            def cheat(
                sender: int, receiver: int, at: int, content: bytes, number: int = number, again: bool = again
            ) -> bytes | None:
                if (sender, at) != (CHEATER, number) or to not in (None, receiver):
                    return content
                if again:
                    named = receiver if number in running.private else BROADCAST  # noqa: B023
                    body = running.sign(CHEATER, number, named, content)  # noqa: B023
                    running.queue.append((receiver, (number, CHEATER, named, content, body.signature)))  # noqa: B023
                return content if again else None

            running.cheat = cheat
            for culprits, group, silent in [
                each for each in told(running, {CHEATER}).values() if isinstance(each, tuple)
            ]:
                assert set(culprits) <= {CHEATER}
                assert group == ()
                assert not silent or CHEATER in silent
