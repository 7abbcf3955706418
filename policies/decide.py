"""The decision: a pure function of policy, request, counters and time."""

from __future__ import annotations

import msgspec

from policies.model import Action, Counters, Policy, Request, Rule
from policies.rules import CHECKS


class Allow(msgspec.Struct, frozen=True):
    """Permitted by the policy's rule `rule`, with nobody else to ask."""

    rule: str


class AskGate(msgspec.Struct, frozen=True):
    """Permitted by the policy's rule `rule`, if the operator's validation gate agrees."""

    rule: str


class Refuse(msgspec.Struct, frozen=True):
    """Not permitted. `rule` is a stable code (`policy/<check>`), `reason` is for people."""

    rule: str
    reason: str


Decision = Allow | Refuse | AskGate


def decide(policy: Policy, request: Request, counters: Counters, now_s: int) -> Decision:
    """What `policy` says to `request` at `now_s` (Unix seconds).

    A request is permitted by the first rule that fits it in every check; what no rule permits is refused.
    Every permitted signature asks the gate; creating a key gives nothing away and does not. A refusal names
    the check that the closest rule failed.
    """
    del counters, now_s  # no rule counts yet
    furthest, refusal = -1, Refuse("policy/client", "the policy has no rules, so it refuses everything")
    for rule in policy.rules:
        step, reason = _first_miss(rule, request)
        if not reason:
            return AskGate(rule.name) if request.action is Action.SIGN else Allow(rule.name)
        if step > furthest:
            furthest, refusal = step, Refuse(f"policy/{CHECKS[step][0]}", reason)
    return refusal


def _first_miss(rule: Rule, request: Request) -> tuple[int, str]:
    """The first check of `rule` that `request` fails (its place in `CHECKS`) and why; `""` where it fits."""
    for step, (_, check) in enumerate(CHECKS):
        if reason := check(rule, request):
            return step, reason
    return len(CHECKS), ""
