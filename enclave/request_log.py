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
        self._log = log
        self._allowance = Allowance(clock, REFUSALS_PER_S, REFUSALS_AT_ONCE)

    def told(self, event: str, digest: bytes, request_id: str, **facts: Fact) -> None:
        """Something was done for the request with this digest (32 bytes)."""
        self._log.info(event, request_id=request_id, request=digest.hex(), **facts)

    def refused(self, event: str, digest: bytes, request_id: str, **facts: Fact) -> None:
        """Something was refused. After a flood the next line says how many were passed over (`not_told`)."""
        passed_over = self._allowance.take()
        if passed_over is None:
            return
        if passed_over:
            facts["not_told"] = passed_over
        self._log.warning(event, request_id=request_id, request=digest.hex(), **facts)
