"""Who may ask: the id of the client whose key signed the request."""

from __future__ import annotations

from policies.model import Request, Rule


def check(rule: Rule, request: Request) -> str:
    """Empty, or why `request` does not fit `rule`."""
    if request.client_id in rule.clients:
        return ""
    return f"client {request.client_id} has no permission"
