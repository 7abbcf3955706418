"""How much one payload spends: a transaction's value in wei, a Bitcoin input's amount in satoshi."""

from __future__ import annotations

from policies.decoded import BitcoinDecoded, EthereumDecoded
from policies.facts import Situation
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    decoded = situation.request.decoded
    if isinstance(decoded, EthereumDecoded) and rule.ethereum is not None:
        most = rule.ethereum.most_value
        fits = most is None or decoded.value <= most
        return "" if fits else f"the value of {decoded.value} wei is above {most}"
    if isinstance(decoded, BitcoinDecoded) and rule.bitcoin is not None:
        most = rule.bitcoin.most
        fits = most is None or decoded.amount <= most
        return "" if fits else f"the input of {decoded.amount} sat is above {most}"
    return ""
