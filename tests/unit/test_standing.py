"""Who is left out of committees for a while: after a failure or slow answers, and never when it is needed."""

from __future__ import annotations

import pytest

from appliance.coordinator.standing import FIRST_AVOIDED_S, LONGEST_AVOIDED_S, MIN_ANSWERS, Standing


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


def test_a_slow_signer_is_left_out_after_some_answers(standing: Standing) -> None:
    for _ in range(MIN_ANSWERS - 1):
        standing.answered({1: 0.01, 2: 0.6, 3: 0.02})
    assert standing.avoided() == frozenset()
    standing.answered({1: 0.01, 2: 0.6, 3: 0.02})
    assert standing.avoided() == {2}


def test_what_is_slow_for_everybody_is_nobodys_fault(standing: Standing) -> None:
    for _ in range(3 * MIN_ANSWERS):
        standing.answered({1: 0.5, 2: 0.9, 3: 0.6})
        standing.answered({4: 0.5, 5: 1.9})
    assert standing.avoided() == frozenset()


def test_good_answers_make_the_next_failure_a_first_one(standing: Standing, clock: Clock) -> None:
    standing.failed(2, "timeout")
    clock.now_s += FIRST_AVOIDED_S
    for _ in range(MIN_ANSWERS):
        standing.answered({1: 0.01, 2: 0.01, 3: 0.01})
    standing.failed(2, "timeout")
    clock.now_s += FIRST_AVOIDED_S
    assert standing.avoided() == frozenset()


def test_nobody_is_left_out_who_is_needed(standing: Standing) -> None:
    standing.failed(2, "timeout")
    assert standing.without_avoided((1, 2, 3, 4), 3) == (1, 3, 4)
    assert standing.without_avoided((1, 2, 3), 3) == (1, 2, 3)
