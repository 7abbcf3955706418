"""Log lines that a signer causes: so many of each kind, so that none fills the coordinator's disk."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from policies.repeats import Allowance

# Of one kind by one signer: a network of 22 signers that starts tells of its links at once.
LINES_AT_ONCE, LINES_PER_S = 64, 0.1

log = structlog.get_logger()


class RationedLines:
    """`clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # By signer and event; both are bounded.
        self._allowances: dict[tuple[int, str], Allowance] = {}

    def tell(self, index: int, level: str, event: str, **told: object) -> None:
        """Log `event` of signer `index`, unless it has had its share; `not_told`: how many were passed over before."""
        allowance = self._allowances.get((index, event))
        if allowance is None:
            allowance = self._allowances[index, event] = Allowance(self._clock, LINES_PER_S, LINES_AT_ONCE)
        passed_over = allowance.take()
        if passed_over is None:
            return
        if passed_over:
            told["not_told"] = passed_over
        getattr(log, level)(event, **told)
