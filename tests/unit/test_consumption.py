"""Consumption of a pool over time, and the marks that follow from it."""

from __future__ import annotations

import pytest

from appliance.coordinator.consumption import Consumption, Marks, recommended
from tests.unit.test_standing import Clock


def spend(consumption: Consumption, count: int) -> None:
    for _ in range(count):
        consumption.note()


def test_the_rate_is_that_of_the_last_minute() -> None:
    clock = Clock()
    consumption = Consumption(clock)
    assert consumption.per_s() == 0.0
    for _ in range(60):
        spend(consumption, 5)
        clock.now_s += 1.0
    assert consumption.per_s() == pytest.approx(5.0, rel=0.05)
    clock.now_s += 30.0
    assert consumption.per_s() == pytest.approx(2.5, rel=0.1)
    clock.now_s += 60.0
    assert consumption.per_s() == 0.0
    assert consumption.busiest_minute == pytest.approx(300, abs=10)


def test_shortly_after_the_start_the_rate_is_over_what_there_was() -> None:
    clock = Clock()
    consumption = Consumption(clock)
    spend(consumption, 100)
    clock.now_s += 10.0
    assert consumption.per_s() == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("burst", "spent_per_s", "batch", "batch_s", "marks"),
    [
        (1000, 0.0, 4096, 0.4, Marks(1000, 5096)),
        (1000, 100.0, 4096, 0.5, Marks(1050, 5146)),
        (0, 0.0, 256, 0.0, Marks(1, 257)),
        (1_000_000, 0.0, 4096, 1.0, Marks(100_000, 100_000)),
    ],
)
def test_marks_hold_a_burst_until_the_refill_has_come(
    burst: int, spent_per_s: float, batch: int, batch_s: float, marks: Marks
) -> None:
    assert recommended(burst, spent_per_s, batch, batch_s, 100_000) == marks
