"""The hash that a message is signed under."""

from __future__ import annotations

from policies.decoded import MessageDecoded
from policies.facts import Situation
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    decoded = situation.request.decoded
    if not isinstance(decoded, MessageDecoded) or rule.message is None or decoded.hash in rule.message.hashes:
        return ""
    return f"messages under {decoded.hash} are not permitted"
