"""Which chains: of Ethereum transactions, and of typed data's domains."""

from __future__ import annotations

from policies.decoded import EthereumDecoded, TypedDataDecoded
from policies.facts import Situation
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    decoded = situation.request.decoded
    if isinstance(decoded, EthereumDecoded) and rule.ethereum is not None:
        return "" if decoded.chain_id in rule.ethereum.chains else f"the chain {decoded.chain_id} is not permitted"
    if isinstance(decoded, TypedDataDecoded) and rule.typed_data is not None:
        if decoded.chain_id in rule.typed_data.chains:
            return ""
        return f"typed data for {'no chain' if decoded.chain_id is None else f'the chain {decoded.chain_id}'}"
    return ""
