"""Which child keys: patterns over the derivation path of a signature."""

from __future__ import annotations

from policies.globs import path_matches
from policies.model import Action, Request, Rule


def check(rule: Rule, request: Request) -> str:
    """Empty, or why `request` does not fit `rule`."""
    if request.action is Action.CREATE_KEY:
        return ""
    if any(path_matches(pattern, request.derivation_path) for pattern in rule.derivation_paths):
        return ""
    return f"the derivation path {'/'.join(('m', *map(str, request.derivation_path)))} is not permitted"
