"""Token buckets and places: what one name may take, and that no number of names takes more memory."""

from __future__ import annotations

import contextlib

import pytest

from appliance.coordinator.admission import network_of
from appliance.coordinator.rates import MAX_NAMES, Limited, Places, Rates


class Clock:
    """A clock that stands until it is told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def taken(rates: Rates, name: str) -> int:
    """How many `name` may take now."""
    count = 0
    while True:
        try:
            rates.take(name)
        except Limited:
            return count
        count += 1


def test_a_bucket_fills_again_up_to_its_burst() -> None:
    clock = Clock()
    rates = Rates(2.0, 5.0, clock)
    assert taken(rates, "a") == 5
    clock.now_s += 1.5
    assert taken(rates, "a") == 3
    clock.now_s += 1000
    assert taken(rates, "a") == 5
    assert taken(rates, "b") == 5


def test_a_refusal_says_when_to_come_back_and_costs_nothing() -> None:
    clock = Clock()
    rates = Rates(0.1, 1.0, clock)
    rates.take("a")
    for _ in range(3):
        with pytest.raises(Limited) as refused:
            rates.take("a")
        assert (refused.value.code, refused.value.retry_after_s) == ("rate-limited", 10)
    with pytest.raises(Limited):
        rates.check("a")
    clock.now_s += 10
    rates.check("a")
    rates.take("a")


def test_a_clock_that_stands_or_names_that_never_end_take_no_memory() -> None:
    rates = Rates(1.0, 1.0, Clock())
    for number in range(3 * MAX_NAMES):
        with contextlib.suppress(Limited):
            rates.take(f"address-{number}")
        rates.check(f"only asked {number}")
    assert len(rates) == MAX_NAMES
    with pytest.raises(Limited):
        rates.take(f"address-{MAX_NAMES - 1}")


def test_who_has_had_enough_is_not_forgotten_for_newcomers_and_they_are_let_in() -> None:
    clock = Clock()
    rates = Rates(1.0, 4.0, clock)
    assert taken(rates, "greedy") == 4
    for number in range(MAX_NAMES - 1):
        rates.take(f"address-{number}")
    # All have taken as much as one more would have: nobody is forgotten.
    with pytest.raises(Limited, match="others ask too often"):
        rates.take("newcomer")
    clock.now_s += 0.5
    for number in range(2 * MAX_NAMES):
        with contextlib.suppress(Limited):
            rates.take(f"newcomer-{number}")
    assert len(rates) == MAX_NAMES
    assert taken(rates, "newcomer-0") == 3
    assert taken(rates, "greedy") == 0
    clock.now_s += 0.5
    assert taken(rates, "greedy") == 1


def test_one_name_that_asks_for_ever_takes_no_memory() -> None:
    clock = Clock()
    rates = Rates(1.0, 1.0, clock)
    for _ in range(10 * MAX_NAMES):
        rates.take("a")
        clock.now_s += 1.0
    assert len(rates) == 1
    assert len(rates._order) <= 4 * MAX_NAMES


def test_places_are_given_back_also_after_an_error() -> None:
    places = Places(2)
    with places.take("a"), places.take("a"), places.take("b"):
        third = places.take("a")
        with pytest.raises(Limited, match="too-many-in-flight"):
            third.__enter__()
        assert len(places) == 2
    with pytest.raises(ZeroDivisionError), places.take("a"):
        raise ZeroDivisionError
    with places.take("a"), places.take("a"):
        pass
    assert len(places) == 0


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no:address", "no:address"),
        ("", ""),
    ],
)
def test_a_host_is_charged_for_all_its_addresses(address: str, network: str) -> None:
    assert network_of(address) == network
