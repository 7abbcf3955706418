"""A table's cases put to a policy, read and decided as an enclave would. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from policies.counters import Counters
from policies.decide import Refuse
from policies.errors import CallerError, Refused
from policies.explain import decide_all
from policies.facts import Situation
from policies.gate_messages import parse_time
from policies.model import Policy
from policies.reading import Asker, check_asker, read_body
from policies.rules.limits import counts_under
from policies.tables import Case, Table


class Outcome(msgspec.Struct, frozen=True):
    """What became of a case. `expected`, `got`: the name of a rule that permits, or the code of a refusal."""

    name: str
    expected: str
    got: str
    reason: str

    @property
    def passed(self) -> bool:
        """Whether it is what the table says."""
        return self.expected == self.got


class Trial(msgspec.Struct, frozen=True):
    """All outcomes. `untried`: rules that no case of the table is permitted by."""

    outcomes: tuple[Outcome, ...]
    untried: tuple[str, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The cases that are not as the table says."""
        return tuple(outcome for outcome in self.outcomes if not outcome.passed)


def run_table(policy: Policy, table: Table, keccak256: Callable[[bytes], bytes]) -> Trial:
    """Every case of `table` put to `policy`. Raises `CallerError` where the table itself makes no sense."""
    names = {rule.name for rule in policy.rules}
    for case in table.cases:
        if case.permitted_by is not None and case.permitted_by not in names:
            raise CallerError(f"the case `{case.name}` names the rule {case.permitted_by}, which the policy has not")
        for key in case.used:
            # It would count for nothing, and the case say nothing of the limit.
            if not counts_under(policy, key):
                known = "name of a limit, window in seconds, what it counts apart: `payouts 3600s label=treasury/eth`"
                raise CallerError(f"the case `{case.name}` uses `{key}`, which the policy does not count ({known})")
    outcomes = tuple(_try(policy, case, case.at or table.at, keccak256) for case in table.cases)
    tried = {outcome.got for outcome in outcomes if outcome.passed}
    return Trial(outcomes, tuple(rule.name for rule in policy.rules if rule.name not in tried))


def _try(policy: Policy, case: Case, at: str, keccak256: Callable[[bytes], bytes]) -> Outcome:
    expected = case.permitted_by or case.refused_by or ""
    counters = Counters(case.used, frozenset(case.seen), frozenset(case.observed))
    asker = Asker(case.client, case.label, frozenset(case.approvers))
    now_s = read_time(at)
    try:
        check_asker(policy, asker)
        requests = read_body(case.request_body(), asker, keccak256)
    except Refused as refusal:
        return Outcome(case.name, expected, refusal.rule, refusal.reason)
    decision = decide_all(tuple(Situation(policy, request, counters, now_s) for request in requests))[-1].decision
    if isinstance(decision, Refuse):
        return Outcome(case.name, expected, decision.rule, decision.reason)
    return Outcome(case.name, expected, decision.rule, "")


def read_time(text: str) -> int:
    """A time such as `2026-01-05T12:00:00Z` in Unix seconds. Raises `CallerError`."""
    try:
        return parse_time(text)
    except ValueError:
        raise CallerError(f"`{text}` is no time such as 2026-01-05T12:00:00Z") from None
