"""Which keys: patterns over the immutable label."""

from __future__ import annotations

from policies.globs import label_matches
from policies.model import Request, Rule


def check(rule: Rule, request: Request) -> str:
    """Empty, or why `request` does not fit `rule`."""
    if any(label_matches(pattern, request.label) for pattern in rule.labels):
        return ""
    return f"no permission to {request.action} for the label {request.label}"
