"""What may be signed: bare hashes, messages, Ethereum transactions, typed data, Bitcoin inputs."""

from __future__ import annotations

from policies.facts import Situation
from policies.model import Action, Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    request = situation.request
    if request.kind in rule.kinds or request.action is Action.CREATE_KEY:
        return ""
    return f"the kind {request.kind or 'unknown'} is not permitted"
