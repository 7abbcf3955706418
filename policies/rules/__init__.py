"""What a rule of a policy checks, one module a check, in the order in which they are tried.

A check is `check(rule, situation) -> str`: empty where the request fits, else what the rule misses. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from policies.facts import Situation
from policies.model import Rule
from policies.rules import (
    action,
    approvals,
    blind,
    chain,
    client,
    derivation_path,
    destination,
    fee,
    hours,
    kind,
    label,
    message_hash,
    method,
    payload,
    primary_type,
    sighash,
    token,
    value,
)

Check = Callable[[Rule, Situation], str]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("client", client.check),
    ("action", action.check),
    ("label", label.check),
    ("kind", kind.check),
    ("blind", blind.check),
    ("derivation-path", derivation_path.check),
    ("payload", payload.check),
    ("chain", chain.check),
    ("destination", destination.check),
    ("method", method.check),
    ("primary-type", primary_type.check),
    ("message-hash", message_hash.check),
    ("sighash", sighash.check),
    ("token", token.check),
    ("value", value.check),
    ("fee", fee.check),
    ("hours", hours.check),
    ("approvals", approvals.check),
)

# Those that nothing misses of a rule that constrains no payloads (`Rule.constrains`).
OF_PAYLOADS = frozenset(
    {
        *("payload", "chain", "destination", "method", "primary-type"),
        *("message-hash", "sighash", "token", "value", "fee"),
    }
)
