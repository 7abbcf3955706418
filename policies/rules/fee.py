"""The most that a transaction may cost, beside its value."""

from __future__ import annotations

from policies.decoded import EthereumDecoded
from policies.facts import Situation
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    decoded = situation.request.decoded
    if not isinstance(decoded, EthereumDecoded) or rule.ethereum is None:
        return ""
    most = rule.ethereum.most_fee
    fits = most is None or decoded.max_fee <= most
    return "" if fits else f"the fee of up to {decoded.max_fee} wei is above {most}"
