"""The decision: a pure function of policy, request, counters and time."""

from __future__ import annotations

import msgspec

from policies.counters import NOTHING, Charge, Counters
from policies.facts import Request, Situation
from policies.limits import Anomaly
from policies.model import Action, Policy, Rule
from policies.rules import CHECKS, OF_PAYLOADS, Check, limits

# With their places in `CHECKS`.
_ALL: tuple[tuple[int, Check], ...] = tuple((step, check) for step, (_, check) in enumerate(CHECKS))
_OF_ANY_PAYLOAD = tuple((step, check) for step, check in _ALL if CHECKS[step][0] not in OF_PAYLOADS)


class Allow(msgspec.Struct, frozen=True):
    """Permitted by the policy's rule `rule`, with nobody else to ask."""

    rule: str


class AskGate(msgspec.Struct, frozen=True):
    """Permitted by the policy's rule `rule`, if the operator's validation gate agrees.

    `charge`: what signing it adds to the counters. `anomalies` are to be told; `to_gate`: those that the gate must see.
    """

    rule: str
    charge: Charge = NOTHING
    anomalies: tuple[Anomaly, ...] = ()
    to_gate: tuple[Anomaly, ...] = ()


class Refuse(msgspec.Struct, frozen=True):
    """Not permitted. `rule` is a stable code (`policy/<check>`), `reason` is for people."""

    rule: str
    reason: str


Decision = Allow | Refuse | AskGate


def decide(policy: Policy, request: Request, counters: Counters, now_s: int, before: Charge = NOTHING) -> Decision:
    """What `policy` says to `request` at `now_s` (Unix seconds). `before`: what other parts of it add to the counters.

    A request is permitted by the first rule that fits it in every check, limits last; what no rule permits is refused.
    Every permitted signature asks the gate; creating a key gives nothing away and does not. A refusal names
    the check that the closest rule failed.
    """
    situation = Situation(policy, request, counters, now_s)
    furthest, refusal = -1, Refuse("policy/client", "the policy has no rules, so it refuses everything")
    for rule in policy.rules:
        step, reason = _first_miss(rule, situation)
        if reason:
            if step > furthest:
                furthest, refusal = step, Refuse(f"policy/{CHECKS[step][0]}", reason)
            continue
        if request.action is not Action.SIGN:
            return Allow(rule.name)
        kept = limits.check(policy, rule, request, counters, before)
        if isinstance(kept, limits.Fits):
            return AskGate(rule.name, kept.charge, kept.told, kept.to_gate)
        if step > furthest:
            furthest, refusal = step, Refuse(f"policy/{kept.check}", kept.reason)
    return refusal


def _first_miss(rule: Rule, situation: Situation) -> tuple[int, str]:
    """The first check of `rule` that the request fails (its place in `CHECKS`) and why; `""` where it fits."""
    for step, check in _ALL if rule.constrains else _OF_ANY_PAYLOAD:
        if reason := check(rule, situation):
            return step, reason
    return len(CHECKS), ""
