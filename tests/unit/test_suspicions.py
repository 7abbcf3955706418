"""A group in which somebody cheated: with enough words, some of it are left out; who is in every group is found."""

from __future__ import annotations

from appliance.coordinator.standing import FIRST_AVOIDED_S, Standing
from appliance.coordinator.suspicions import CODE, MAX_WORDS, Suspicions
from enclave import wire
from tests.fakes.certificates import Dealer


def word(group: tuple[int, ...], number: int = 0, culprits: tuple[int, ...] = ()) -> wire.Convicted:
    context = number.to_bytes(32, "big")
    return wire.Convicted(bytes(16), "presign", context, "3.3", "different sub-seeds", culprits, group, bytes(32))


def make(n: int, t: int) -> tuple[Suspicions, list[int]]:
    left_out: list[int] = []
    return Suspicions(Dealer.make(n, t).roster, lambda index, _code: left_out.append(index)), left_out


def test_a_group_is_left_out_once_more_than_t_have_named_it() -> None:
    suspicions, left_out = make(5, 1)
    for reporter in (3, 3, 3):
        suspicions.announced(reporter, word((1, 2)))
    suspicions.announced(4, word((1, 3)))
    assert left_out == []
    suspicions.announced(5, word((1, 2)))
    assert left_out == [1, 2]
    # The rest of that ceremony's words change nothing.
    suspicions.announced(4, word((1, 2)))
    assert left_out == [1, 2]


def test_no_more_are_left_out_than_others_can_stand_in_for_and_the_cheater_is_soon_among_them() -> None:
    suspicions, left_out = make(4, 1)
    # Signer 2 cheats in every group.
    for number, group in enumerate([(1, 2), (2, 3), (2, 4)]):
        for reporter in (1, 3, 4):
            suspicions.announced(reporter, word(group, number))
    assert left_out == [1, 2, 2]


def test_who_spoils_every_batch_is_soon_left_out_whomever_it_names() -> None:
    suspicions, left_out = make(4, 1)
    for named in (1, 3, 4):
        suspicions.unfinished({2, named})
    assert left_out == [1, 2, 2]


def test_convictions_strangers_and_empty_groups_are_nothing_here() -> None:
    suspicions, left_out = make(5, 1)
    for reporter in (3, 4, 5):
        suspicions.announced(reporter, word((1, 2), culprits=(2,)))
        suspicions.announced(reporter, word((1, 9), 1))
        suspicions.announced(reporter, word((), 2))
    assert left_out == []


def test_what_is_remembered_is_bounded_for_each_reporter() -> None:
    suspicions, left_out = make(5, 1)
    suspicions.announced(4, word((1, 2), 1))
    for number in range(10 * MAX_WORDS):
        suspicions.announced(3, word((4, 5), 1000 + number))
    assert {reporter: len(words) for reporter, words in suspicions._words.items()} == {3: MAX_WORDS, 4: 1}
    suspicions.announced(5, word((1, 2), 1))
    assert left_out == [1, 2]


def test_it_is_for_a_while() -> None:
    now_s = 0.0
    standing = Standing(lambda: now_s)
    standing.failed(2, CODE)
    assert standing.avoided() == {2}
    now_s = FIRST_AVOIDED_S
    assert standing.avoided() == frozenset()
