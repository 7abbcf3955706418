"""Which child keys: patterns over the derivation path of a signature."""

from __future__ import annotations

from policies.facts import Situation
from policies.globs import path_matches
from policies.model import Action, Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    request = situation.request
    for pattern in rule.derivation_paths:
        if path_matches(pattern, request.derivation_path):
            return ""
    if request.action is Action.CREATE_KEY:
        return ""
    return f"the derivation path {'/'.join(('m', *map(str, request.derivation_path)))} is not permitted"
