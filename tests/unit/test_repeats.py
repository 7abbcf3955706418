"""Log lines that are worth writing: changes and reminders, and no more than a stranger is allowed."""

from __future__ import annotations

from policies.repeats import MAX_SUBJECTS, Allowance, Repeats


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_failure_is_told_when_it_begins_when_it_changes_and_as_a_reminder() -> None:
    clock = Clock()
    repeats = Repeats(clock, remind_s=60.0)
    assert [repeats.due("link", "refused") for _ in range(4)] == [0, None, None, None]
    assert repeats.due("other link", "refused") == 0
    assert repeats.due("link", "no route") == 3
    clock.now_s = 59.9
    assert repeats.due("link", "no route") is None
    clock.now_s = 60.0
    assert repeats.due("link", "no route") == 1
    assert (repeats.over("link"), repeats.over("link")) == (True, False)
    assert repeats.due("link", "no route") == 0


def test_subjects_are_bounded() -> None:
    repeats = Repeats(Clock())
    for number in range(MAX_SUBJECTS + 1):
        repeats.due(str(number), "away")
    assert (repeats.over("0"), repeats.over("1")) == (False, True)


def test_an_allowance_bounds_a_flood_and_counts_what_it_passed_over() -> None:
    clock = Clock()
    allowance = Allowance(clock, per_s=2.0, burst=3)
    assert [allowance.take() for _ in range(5)] == [0, 0, 0, None, None]
    clock.now_s = 0.5
    assert [allowance.take() for _ in range(2)] == [2, None]
    clock.now_s = 3600.0
    assert [allowance.take() for _ in range(4)] == [1, 0, 0, None]
