"""SPEC 4.13: which approvals were too few for a request a moment ago, so that it need not be understood again."""

from __future__ import annotations

from enclave.errors import Refused

AGAIN_AFTER_S = 10.0
"""The same approvals may be enough later: by a new policy, or at another hour."""
MAX_SETS = 32


class Lacking:
    """Sets of clients whose approvals a request came with, and with which it was refused for the lack of more.

    Kept apart, as whoever shows fewer approvals than there are, or others, must not be in the way of who shows all.
    """

    def __init__(self) -> None:
        self._refused: dict[frozenset[str], tuple[float, str]] = {}

    def check(self, approvers: frozenset[str], now_s: float) -> None:
        """Raises `Refused` where no more than these were too few a moment ago."""
        for more, (until_s, reason) in self._refused.items():
            if approvers <= more and now_s < until_s:
                raise Refused("policy/approvals", reason)

    def keep(self, approvers: frozenset[str], reason: str, now_s: float) -> None:
        """These were too few now."""
        for fewer in [each for each in self._refused if each <= approvers]:
            del self._refused[fewer]
        if len(self._refused) >= MAX_SETS:
            del self._refused[next(iter(self._refused))]
        self._refused[approvers] = (now_s + AGAIN_AFTER_S, reason)
