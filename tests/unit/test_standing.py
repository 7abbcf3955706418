"""Who is left out of committees for a while: after a failure or slow answers, and never when it is needed."""

from __future__ import annotations

from random import Random

import pytest

from appliance.coordinator.standing import (
    FIRST_AVOIDED_S,
    LONGEST_AVOIDED_S,
    MIN_ANSWERS,
    MIN_BATCHES,
    SLOW_FOR_S,
    Standing,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def standing(clock: Clock) -> Standing:
    return Standing(clock)


@pytest.mark.parametrize("code", ["timeout", "signer-away", "unavailable", "online-refused"])
def test_a_failure_leaves_out_whom_it_names(standing: Standing, clock: Clock, code: str) -> None:
    standing.failed(2, code)
    assert standing.avoided() == {2}
    clock.now_s += FIRST_AVOIDED_S
    assert standing.avoided() == frozenset()


@pytest.mark.parametrize(
    "code", ["no-presignatures", "request/boot", "terms", "busy", "ceremony/link", "ceremony/peer"]
)
def test_ends_that_say_nothing_of_a_signer_leave_out_nobody(standing: Standing, code: str) -> None:
    standing.failed(2, code)
    standing.failed(0, "timeout")
    assert standing.avoided() == frozenset()


def test_one_trouble_seen_by_many_requests_counts_once_and_the_next_one_longer(
    standing: Standing, clock: Clock
) -> None:
    for _ in range(50):
        standing.failed(2, "timeout")
    clock.now_s += FIRST_AVOIDED_S
    assert standing.avoided() == frozenset()
    standing.failed(2, "timeout")
    clock.now_s += FIRST_AVOIDED_S
    assert standing.avoided() == {2}
    for _ in range(40):
        clock.now_s += LONGEST_AVOIDED_S
        assert standing.avoided() == frozenset()
        standing.failed(2, "timeout")


def test_a_signer_that_stays_slow_is_left_out(clock: Clock) -> None:
    told = []
    standing = Standing(clock, tell=lambda index, why, seconds: told.append((index, why, seconds)))
    answers = 0
    while not standing.avoided():
        standing.answered({1: 0.01, 2: 0.6, 3: 0.02})
        clock.now_s += 0.5
        answers += 1
    # 7 until three quarters of the newest lag, then for 5 s.
    assert (standing.avoided(), answers) == ({2}, 7 + 10)
    assert told == [(2, "slow", FIRST_AVOIDED_S)]


def test_one_stall_of_a_signer_leaves_out_nobody(standing: Standing, clock: Clock) -> None:
    # Everything that was under way while it stood still lags.
    for _ in range(100):
        standing.answered({1: 0.01, 2: 3.0, 3: 0.02})
    clock.now_s += SLOW_FOR_S
    for _ in range(2):
        standing.answered({1: 0.01, 2: 0.01, 3: 0.02})
    assert standing.avoided() == frozenset()


def test_an_overloaded_committee_leaves_out_nobody(standing: Standing, clock: Clock) -> None:
    # As seen with 100 requests at once on 2 cores: each is now the quickest and now the slowest, by far.
    random = Random(1)
    for _ in range(2000):
        committee = random.sample(range(1, 6), 3)
        standing.answered({index: random.choice([0.02, 0.1, 0.9, 1.5]) for index in committee})
        clock.now_s += 0.02
        assert standing.avoided() == frozenset()


def test_a_quick_answer_of_a_quiet_moment_is_no_measure_for_a_busy_one(standing: Standing, clock: Clock) -> None:
    standing.answered({3: 0.005, 4: 0.005, 5: 0.005})
    for _ in range(100):
        standing.answered({1: 0.7, 2: 0.8, 4: 0.9})
        clock.now_s += 0.5
    assert standing.avoided() == frozenset()


def test_what_is_slow_for_everybody_is_nobodys_fault(standing: Standing, clock: Clock) -> None:
    for _ in range(3 * MIN_ANSWERS):
        standing.answered({1: 0.5, 2: 0.9, 3: 0.6})
        standing.answered({4: 0.5, 5: 1.9})
        clock.now_s += 1.0
    assert standing.avoided() == frozenset()


def test_good_answers_make_the_next_failure_a_first_one(standing: Standing, clock: Clock) -> None:
    standing.failed(2, "timeout")
    clock.now_s += FIRST_AVOIDED_S
    for _ in range(MIN_ANSWERS):
        standing.answered({1: 0.01, 2: 0.01, 3: 0.01})
    standing.failed(2, "timeout")
    clock.now_s += FIRST_AVOIDED_S
    assert standing.avoided() == frozenset()


def test_good_signatures_do_not_make_up_for_spoiled_batches_but_good_batches_do(
    standing: Standing, clock: Clock
) -> None:
    def spoiled() -> float:
        """Seconds for which signer 2 is left out now."""
        standing.failed(2, "unfinished-batch")
        began_s = clock.now_s
        while standing.avoided():
            clock.now_s += 1.0
        return clock.now_s - began_s

    assert spoiled() == FIRST_AVOIDED_S
    for _ in range(5 * MIN_ANSWERS):
        standing.answered({1: 0.01, 2: 0.01, 3: 0.01})
    for _ in range(MIN_BATCHES - 1):
        standing.presigned((1, 2, 3))
    assert spoiled() == 2 * FIRST_AVOIDED_S
    for _ in range(MIN_BATCHES):
        standing.presigned((1, 2, 3))
    assert spoiled() == FIRST_AVOIDED_S


def test_those_that_failed_least_come_back_first(standing: Standing, clock: Clock) -> None:
    standing.failed(1, "unfinished-batch")
    clock.now_s += FIRST_AVOIDED_S
    for index in (1, 2, 3):
        standing.failed(index, "unfinished-batch")
    assert standing.without_avoided((1, 2, 3, 4), 3) == (2, 3, 4)
    assert standing.without_avoided((1, 2, 3, 4), 2) == (2, 4)


def test_nobody_is_left_out_who_is_needed(standing: Standing) -> None:
    standing.failed(2, "timeout")
    assert standing.without_avoided((1, 2, 3, 4), 3) == (1, 3, 4)
    assert standing.without_avoided((1, 2, 3), 3) == (1, 2, 3)
