"""The enclave's log lines about clients' requests, each with the request's digest and what logs elsewhere call it."""

from __future__ import annotations

from collections.abc import Callable

from enclave.log import Fact, Log
from policies.repeats import Allowance

REFUSALS_PER_S, REFUSALS_AT_ONCE = 10.0, 200


class RequestLog:
    """Refusals cost a coordinator nothing, so their lines are rationed; shares are bounded by signed requests."""

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds."""
        self._log, self._clock = log, clock
        # By coordinator, of which the dispatcher bounds the number: one that floods hides nothing of the others'.
        self._allowances: dict[str, Allowance] = {}

    def told(self, event: str, digest: bytes, request_id: str, **facts: Fact) -> None:
        """Something was done for the request with this digest (32 bytes)."""
        self._log.info(event, request_id=request_id, request=digest.hex(), **facts)

    def refused(self, coordinator: str, event: str, digest: bytes, request_id: str, **facts: Fact) -> None:
        """Something was refused. After a flood the next line says how many were passed over (`not_told`)."""
        allowance = self._allowances.get(coordinator)
        if allowance is None:
            allowance = self._allowances[coordinator] = Allowance(self._clock, REFUSALS_PER_S, REFUSALS_AT_ONCE)
        passed_over = allowance.take()
        if passed_over is None:
            return
        if passed_over:
            facts["not_told"] = passed_over
        self._log.warning(event, coordinator=coordinator, request_id=request_id, request=digest.hex(), **facts)
