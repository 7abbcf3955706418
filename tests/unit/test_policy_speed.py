"""A decision is quick also where many rules and destinations are looked at: a bound that a slow machine keeps, too."""

from __future__ import annotations

from appliance.bench.policy import run

# Ten times what was promised (300 µs): a test shares its processor.
MOST_US = 3000


def test_reading_and_deciding_an_eip1559_transfer() -> None:
    result = run(rules=50, destinations=200, repeat=10)
    assert 0 < result.decode_us + result.decide_us < MOST_US
