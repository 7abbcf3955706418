"""What a transaction calls: nothing (a plain transfer), or a contract's methods."""

from __future__ import annotations

from policies.decoded import EthereumDecoded
from policies.facts import Situation
from policies.methods import ANY_DATA, NO_DATA, SELECTOR_BYTES
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    decoded, limits = situation.request.decoded, rule.ethereum
    # Data that creates a contract is its code: `to` has said whether it may be created.
    if not isinstance(decoded, EthereumDecoded) or limits is None or not decoded.to or ANY_DATA in limits.methods:
        return ""
    if not decoded.data:
        return "" if NO_DATA in limits.methods else "a transfer without data is not permitted"
    if len(decoded.data) < SELECTOR_BYTES:
        return f"data of {len(decoded.data)} bytes names no method"
    selector = decoded.data[:SELECTOR_BYTES]
    return "" if selector in limits.selectors else f"the method 0x{selector.hex()} is not permitted"
