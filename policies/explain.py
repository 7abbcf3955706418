"""Why a policy decides as it does: every check of every rule, beside the decision itself. Pure."""

from __future__ import annotations

import msgspec

from policies.counters import NOTHING, Charge
from policies.decide import Decision, Refuse, decide
from policies.facts import Situation
from policies.model import Action, Rule
from policies.rules import CHECKS, limits


class Missed(msgspec.Struct, frozen=True):
    """A check that the request fails: its code, such as `policy/destination`, and why."""

    check: str
    reason: str


class RuleReading(msgspec.Struct, frozen=True):
    """What one rule says: it permits where it misses nothing."""

    rule: str
    missed: tuple[Missed, ...]


class Explanation(msgspec.Struct, frozen=True):
    """`decision`: what `decide` says; `rules`: every rule, in the order of the file."""

    decision: Decision
    rules: tuple[RuleReading, ...]


def explain(situation: Situation, before: Charge = NOTHING) -> Explanation:
    """The decision, and what each rule says to the request. `before`: as for `decide`."""
    decision = decide(situation.policy, situation.request, situation.counters, situation.now_s, before)
    return Explanation(decision, tuple(_read(rule, situation, before) for rule in situation.policy.rules))


def decide_all(situations: tuple[Situation, ...]) -> tuple[Explanation, ...]:
    """The parts of one request, each counted with those before it; what follows a refusal is not looked at."""
    found: list[Explanation] = []
    charge = NOTHING
    for situation in situations:
        found.append(explain(situation, charge))
        if isinstance(found[-1].decision, Refuse):
            break
        charge = charge.plus(getattr(found[-1].decision, "charge", NOTHING))
    return tuple(found)


def _read(rule: Rule, situation: Situation, before: Charge) -> RuleReading:
    missed = [Missed(f"policy/{name}", reason) for name, check in CHECKS if (reason := check(rule, situation))]
    if situation.request.action is Action.SIGN and not missed:
        kept = limits.check(situation.policy, rule, situation.request, situation.counters, before)
        if isinstance(kept, limits.Exceeds):
            missed.append(Missed(f"policy/{kept.check}", kept.reason))
    return RuleReading(rule.name, tuple(missed))
