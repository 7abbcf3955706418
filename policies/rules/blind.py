"""Whether the enclave may sign what it cannot read."""

from __future__ import annotations

from policies.facts import Situation
from policies.model import ALWAYS_BLIND, Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    request = situation.request
    if rule.blind or not (request.blind or request.kind in ALWAYS_BLIND):
        return ""
    return "blind signing is not permitted"
