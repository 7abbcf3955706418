"""Token buckets and places: what one name may take, and that no number of names takes more memory."""

from __future__ import annotations

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
        rates.take(f"address-{number}")
        rates.check(f"only asked {number}")
    assert len(rates) == MAX_NAMES
    with pytest.raises(Limited):
        rates.take(f"address-{3 * MAX_NAMES - 1}")


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
