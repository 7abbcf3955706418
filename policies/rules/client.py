"""Who may ask: the id of the client whose key signed the request."""

from __future__ import annotations

from policies.facts import Situation
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    request = situation.request
    if request.client_id in rule.clients:
        return ""
    return f"client {request.client_id} has no permission"
