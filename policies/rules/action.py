"""What may be asked for: creating a key, signing."""

from __future__ import annotations

from policies.model import Request, Rule


def check(rule: Rule, request: Request) -> str:
    """Empty, or why `request` does not fit `rule`."""
    if request.action in rule.actions:
        return ""
    return f"client {request.client_id} may not {request.action}"
