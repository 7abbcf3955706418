"""What is not wrong in a policy but probably not meant, in words for whoever wrote it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from policies.addresses import ANY
from policies.erc20 import SELECTORS, Erc20Method
from policies.limits import Reaction
from policies.methods import ANY_DATA
from policies.model import ALWAYS_BLIND, Policy, Rule, places_of


def advise(policy: Policy) -> Iterator[str]:
    """Warnings, none of which keeps a policy from being used."""
    named = {client for rule in policy.rules for client in rule.clients}
    named |= {client for rule in policy.rules if rule.approvals is not None for client in rule.approvals.of}
    for client in policy.clients:
        if client.id not in named:
            yield f"no rule names the client {client.id}"
    used = {place for rule in policy.rules for _, places in places_of(rule) for place in places}
    for name in policy.addresses:
        if name not in used:
            yield f"no rule names the list of addresses {name}"
    yield from _advise_first_seen(policy)
    for rule in policy.rules:
        yield from _advise_rule(rule)


def _advise_first_seen(policy: Policy) -> Iterator[str]:
    """What is signed is remembered as seen by the rules alone that ask whether it was."""
    reactions = {rule.name: rule.on_anomaly.first_seen_destination for rule in policy.rules if rule.on_anomaly}
    if {Reaction.FLAG, Reaction.ASK_GATE}.isdisjoint(reactions.values()):
        for name, reaction in reactions.items():
            if reaction is Reaction.REFUSE:
                yield (
                    f"rule {name} refuses on first-seen-destination, and permits nothing: no other rule has "
                    "`first-seen-destination: flag` or `ask-gate`, by which a destination is seen first"
                )


def _advise_rule(rule: Rule) -> Iterator[str]:
    readable = [kind.value for kind in rule.kinds if kind not in ALWAYS_BLIND and kind not in rule.constraints]
    if readable:
        yield f"rule {rule.name} limits nothing of what is in {', '.join(readable)}"
    if rule.ethereum is None:
        return
    if ANY in rule.ethereum.to and ANY_DATA in rule.ethereum.methods:
        yield f"rule {rule.name} permits every call of every contract: `max_value` does not limit tokens"
    erc20 = rule.ethereum.erc20
    approves = Erc20Method.APPROVE in {SELECTORS.get(selector) for selector in rule.ethereum.selectors}
    if approves and (erc20 is None or erc20.max_amount is None):
        yield f"rule {rule.name} permits `approve` of any amount: who may spend, may spend all"
