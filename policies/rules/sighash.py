"""What the signature of a Bitcoin input covers."""

from __future__ import annotations

from policies.constraints import SIGHASH_TYPES
from policies.decoded import BitcoinDecoded
from policies.facts import Situation
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    decoded = situation.request.decoded
    if not isinstance(decoded, BitcoinDecoded) or rule.bitcoin is None:
        return ""
    name = SIGHASH_TYPES.get(decoded.sighash_type)
    return "" if name in rule.bitcoin.sighash_types else f"the sighash type {name} is not permitted"
