"""When: days and times of day at which the request is decided on, by this signer's own clock."""

from __future__ import annotations

from policies.facts import Situation
from policies.hours import show_hour
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    if not rule.hours:
        return ""
    if situation.counters.clock_doubt:
        return situation.counters.clock_doubt
    if any(hours.cover(situation.now_s) for hours in rule.hours):
        return ""
    return f"not at this hour ({show_hour(situation.now_s)})"
