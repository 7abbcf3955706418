"""Whether the enclave may sign what it cannot read."""

from __future__ import annotations

from policies.model import ALWAYS_BLIND, Request, Rule


def check(rule: Rule, request: Request) -> str:
    """Empty, or why `request` does not fit `rule`."""
    if rule.blind or not (request.blind or request.kind in ALWAYS_BLIND):
        return ""
    return "blind signing is not permitted"
