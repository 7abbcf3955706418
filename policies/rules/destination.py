"""Whom a transaction calls or pays, and which contract verifies typed data."""

from __future__ import annotations

from policies.decoded import EthereumDecoded, TypedDataDecoded
from policies.facts import Situation
from policies.model import Rule


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    decoded, lists = situation.request.decoded, situation.policy.address_sets
    if isinstance(decoded, EthereumDecoded) and rule.ethereum is not None:
        if not decoded.to:
            return "" if rule.ethereum.to_set.new_contract else "creating a contract is not permitted"
        permitted = rule.ethereum.to_set.holds(decoded.to, lists)
        return "" if permitted else f"the destination 0x{decoded.to.hex()} is not permitted"
    if isinstance(decoded, TypedDataDecoded) and rule.typed_data is not None:
        contract = decoded.verifying_contract
        if contract is None:
            return "typed data without a verifying contract"
        permitted = rule.typed_data.contract_set.holds(contract, lists)
        return "" if permitted else f"the verifying contract 0x{contract.hex()} is not permitted"
    return ""
