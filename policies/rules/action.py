"""What may be asked for: creating a key, signing."""

from __future__ import annotations

from policies.facts import Situation
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    request = situation.request
    if request.action in rule.actions:
        return ""
    return f"client {request.client_id} may not {request.action}"
