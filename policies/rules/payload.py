"""Whether a rule that constrains payloads can read this one: what is not decoded fits no constraint."""

from __future__ import annotations

from policies.decoded import BitcoinDecoded, EthereumDecoded, MessageDecoded, TypedDataDecoded
from policies.facts import Situation
from policies.model import Action, Kind, Rule

_DECODED = {
    Kind.ETHEREUM_TRANSACTION: EthereumDecoded,
    Kind.EIP712_TYPED_DATA: TypedDataDecoded,
    Kind.BITCOIN_BIP143_PREIMAGE: BitcoinDecoded,
    Kind.MESSAGE: MessageDecoded,
}


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`. Later checks rely on it."""
    request = situation.request
    if request.action is Action.CREATE_KEY or not rule.constrains:
        return ""
    kind = request.kind
    if kind is None or request.blind or kind not in rule.constraints:
        return "what is blind fits no rule that limits what is signed"
    return "" if isinstance(request.decoded, _DECODED[kind]) else f"the payload is no {kind}"
