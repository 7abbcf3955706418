"""What typed data is: the name of its primary type."""

from __future__ import annotations

from policies.addresses import ANY
from policies.decoded import TypedDataDecoded
from policies.facts import Situation
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    decoded = situation.request.decoded
    if not isinstance(decoded, TypedDataDecoded) or rule.typed_data is None:
        return ""
    names = rule.typed_data.primary_types
    return "" if ANY in names or decoded.primary_type in names else f"the type {decoded.primary_type} is not permitted"
