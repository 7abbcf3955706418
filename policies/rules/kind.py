"""What may be signed: bare hashes, messages, Ethereum transactions, typed data, Bitcoin inputs."""

from __future__ import annotations

from policies.model import Action, Request, Rule


def check(rule: Rule, request: Request) -> str:
    """Empty, or why `request` does not fit `rule`."""
    if request.action is Action.CREATE_KEY or request.kind in rule.kinds:
        return ""
    return f"the kind {request.kind or 'unknown'} is not permitted"
