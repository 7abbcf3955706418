"""Who else must have said yes: approvals of other clients; and how long a request may have waited for them."""

from __future__ import annotations

from policies.facts import Situation
from policies.model import Action, Rule
from policies.signed_requests import MAX_LIFETIME_S


def check(rule: Rule, situation: Situation) -> str:
    """Empty, or why the request does not fit `rule`."""
    request = situation.request
    if request.action is Action.CREATE_KEY:
        return ""
    longest_s = MAX_LIFETIME_S if rule.approvals is None else rule.approvals.within_s
    if request.lifetime_s > longest_s:
        return f"signed for {request.lifetime_s} s, and at most {longest_s} s are permitted"
    if rule.approvals is None:
        return ""
    oldest_s, given_s = situation.now_s - longest_s, request.approved_at_s
    fresh = frozenset(name for name in request.approvers if given_s.get(name, situation.now_s) > oldest_s)
    return rule.approvals.missing(request.client_id, fresh)
