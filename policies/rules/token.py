"""Calls of ERC-20 tokens: who gets or may spend them, whose they are, how many. What is not exactly such a call fits
no rule that looks into it."""

from __future__ import annotations

from policies.decoded import EthereumDecoded
from policies.erc20 import decode_call
from policies.facts import Situation
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    decoded, lists = situation.request.decoded, situation.policy.address_sets
    if not isinstance(decoded, EthereumDecoded) or rule.ethereum is None or rule.ethereum.erc20 is None:
        return ""
    limits, call = rule.ethereum.erc20, decode_call(decoded.data)
    if call is None:
        return "the data is not exactly one call of an ERC-20 token: a missing, surplus or unclean word"
    if not limits.recipient_set.holds(call.recipient, lists):
        return f"the tokens' recipient or spender 0x{call.recipient.hex()} is not permitted"
    if call.sender is not None and not limits.sender_set.holds(call.sender, lists):
        return f"tokens of 0x{call.sender.hex()} may not be moved"
    fits = limits.most is None or call.amount <= limits.most
    return "" if fits else f"the tokens' amount {call.amount} is above {limits.most}"
