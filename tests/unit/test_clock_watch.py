"""What an enclave's clocks say of copied, frozen and restored memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from enclave.clock_watch import Clocks, ClockWatch, MemoryInDoubt

START_S = 1_800_000_000.0
HOUR_S, DAY_S = 3600.0, 86_400.0


class Machine:
    """Three clocks; `go` lets time pass on all of them."""

    def __init__(self) -> None:
        self.wall, self.monotonic, self.boottime = START_S, 1000.0, 1000.0
        self.interruptions: list[Callable[[], None]] = []
        self.watch = ClockWatch(Clocks(self.interrupted_wall, lambda: self.monotonic, lambda: self.boottime))

    def interrupted_wall(self) -> float:
        """The wall clock; what then happens before the next clock is read is taken off `interruptions`."""
        shown = self.wall
        if self.interruptions:
            self.interruptions.pop(0)()
        return shown

    def go(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds
        self.boottime += seconds

    def suspend(self, seconds: float) -> None:
        self.wall += seconds
        self.boottime += seconds

    def set_clock(self, seconds: float) -> None:
        self.wall += seconds


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (lambda machine: machine.set_clock(600), "set forward by 600 s"),
        (lambda machine: machine.set_clock(10 * DAY_S), "set forward by 864000 s"),
        (lambda machine: machine.set_clock(-300), "set back by 300 s"),
        (lambda machine: machine.set_clock(-3 * DAY_S), "set back by 259200 s"),
        (lambda machine: machine.suspend(2), "suspended for 2 s"),
        (lambda machine: machine.suspend(DAY_S), "suspended for 86400 s"),
        (lambda machine: machine.go(90), "stood still for 90 s"),
        (lambda machine: machine.watch.signal(), "SIGUSR1"),
    ],
)
def test_what_is_told_once(happens: Callable[[Machine], None], reason: str) -> None:
    machine = Machine()
    machine.go(0.5)
    machine.watch.check()
    happens(machine)
    with pytest.raises(MemoryInDoubt, match=reason):
        machine.watch.check()
    for _ in range(3):
        machine.go(1)
        machine.watch.check()


def test_a_process_that_waits_between_two_clocks_has_not_been_suspended() -> None:
    machine = Machine()
    machine.interruptions = [lambda: machine.go(2), lambda: machine.go(7), lambda: machine.go(0.06)]
    machine.watch.check()
    assert not machine.interruptions
    machine.go(1)
    machine.watch.check()


def test_one_that_is_suspended_between_two_clocks_has() -> None:
    machine = Machine()
    machine.interruptions = [lambda: machine.suspend(2)]
    with pytest.raises(MemoryInDoubt, match="suspended for 2 s"):
        machine.watch.check()


def test_where_every_reading_is_interrupted_the_shortest_one_counts_and_doubt_remains() -> None:
    machine = Machine()
    machine.interruptions = [lambda s=s: machine.go(s) for s in (3.0, 2.0, 0.1, 4.0, 5.0)]  # type: ignore[misc]
    machine.watch.check()
    assert not machine.interruptions
    machine.interruptions = [lambda: machine.go(1)] * 5
    with pytest.raises(MemoryInDoubt, match="suspended"):
        machine.watch.check()


def test_a_clock_that_is_slewed_or_stepped_a_little_is_nothing() -> None:
    machine = Machine()
    for step_s in (0.0005, -0.0005, 1.0, -1.0, 4.9, -4.9):
        for _ in range(10):
            machine.go(1)
            machine.set_clock(step_s / 10)
            machine.watch.check()
    machine.go(1)
    machine.set_clock(1.0)  # a leap second
    machine.watch.check()


def test_requests_are_forgotten_up_to_the_latest_time_that_the_clock_has_shown() -> None:
    machine = Machine()
    machine.go(50)
    machine.watch.check()
    machine.set_clock(-HOUR_S)
    with pytest.raises(MemoryInDoubt) as back:
        machine.watch.check()
    assert back.value.forgotten_until_s == START_S + 50
    machine.go(1)
    machine.set_clock(2 * HOUR_S)
    with pytest.raises(MemoryInDoubt) as forward:
        machine.watch.check()
    assert forward.value.forgotten_until_s == START_S + 51 + HOUR_S
