"""Approvals: other clients' word for one request, which a rule of a policy can ask for."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Annotated

import msgspec

from policies.clients import Name

MAX_APPROVERS = 16
MAX_WITHIN_H = 72

_MISSING = re.compile(r"approvals are needed, [0-9]+ given(?: by (?P<given>[^;]*))?; may approve: (?P<others>.*)")


class Approvals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`at_least` of the clients in `of` must approve a request, each with its own key, within `within_h` hours.

    Whoever asks is no approver of it, unless `requester_counts`: then its request is its approval, if it is in `of`.
    """

    of: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=MAX_APPROVERS)]
    at_least: Annotated[int, msgspec.Meta(ge=1, le=MAX_APPROVERS)]
    within_h: Annotated[int, msgspec.Meta(ge=1, le=MAX_WITHIN_H)] = 24
    requester_counts: bool = False

    def __post_init__(self) -> None:
        if len(set(self.of)) != len(self.of):
            raise ValueError("approvals: `of` names a client twice")
        if self.at_least > len(self.of):
            raise ValueError(f"approvals: `at_least: {self.at_least}` of {len(self.of)} approvers can never be")

    @property
    def within_s(self) -> int:
        """How long a request may wait for its approvals, in seconds."""
        return self.within_h * 3600

    def attainable(self, requester: str) -> bool:
        """Whether a request of `requester` can ever have enough."""
        return len(self.of) - (requester in self.of and not self.requester_counts) >= self.at_least

    def missing(self, requester: str, approvers: Set[str]) -> str:
        """Empty where enough of `approvers` count for a request of `requester`, else who is still needed."""
        counting = set(approvers) - {requester}
        if self.requester_counts:
            counting.add(requester)
        given = [name for name in self.of if name in counting]
        if len(given) >= self.at_least:
            return ""
        others = [name for name in self.of if name not in given and name != requester]
        told = f"{self.at_least} approvals are needed, {len(given)} given"
        return f"{told}{' by ' + ', '.join(given) if given else ''}; may approve: {', '.join(others) or 'nobody'}"


def named_in(missing: str) -> tuple[frozenset[str], frozenset[str]]:
    """Of a text of `Approvals.missing`, whose approvals counted, and who else may approve; nobody where it is none."""
    found = _MISSING.search(missing)
    given, others = (found["given"] or "", found["others"]) if found is not None else ("", "")
    return frozenset(given.split(", ")) - {""}, frozenset(others.split(", ")) - {""}
