"""Which keys: patterns over the immutable label."""

from __future__ import annotations

from policies.facts import Situation
from policies.globs import label_matches
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    request = situation.request
    for pattern in rule.labels:
        if label_matches(pattern, request.label):
            return ""
    return f"no permission to {request.action} for the label {request.label}"
