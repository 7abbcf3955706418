"""What a rule of a policy checks, one module a check, in the order in which they are tried.

A check is `check(rule, situation) -> str`: empty where the request fits, else what the rule misses. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from policies.facts import Situation
from policies.model import Rule
from policies.rules import action, approvals, blind, client, derivation_path, kind, label

Check = Callable[[Rule, Situation], str]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("client", client.check),
    ("action", action.check),
    ("label", label.check),
    ("kind", kind.check),
    ("blind", blind.check),
    ("derivation-path", derivation_path.check),
    ("approvals", approvals.check),
)
