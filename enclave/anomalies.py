"""What this enclave notices by itself, whatever is asked of it: refusals in a burst, a gate slower than usual.

In memory only, and about the present: a restart forgets it. `policies.limits.Anomaly` lists all kinds; those that
depend on the request are the policy's to find.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from enclave.log import Log
from policies.limits import Anomaly

BURST, BURST_S = 20, 60.0
# Observed for so long after the last one that showed it.
LASTS_S = 300.0
LAST_EXCHANGES, SLOW_FACTOR, SLOW_LEAST_S = 5, 4.0, 1.0
USUAL_SHARE = 0.05


class AnomalyWatch:
    """Notes refusals and gate answers; says what is out of the ordinary now."""

    def __init__(self, clock: Callable[[], float], log: Log) -> None:
        """`clock`: monotonic seconds."""
        self._clock, self._log = clock, log
        self.counters: dict[str, int] = {}
        self._refusals: deque[float] = deque(maxlen=BURST)
        self._exchanges: deque[float] = deque(maxlen=LAST_EXCHANGES)
        self._usual_s: float | None = None
        self._until_s: dict[Anomaly, float] = {}

    def observed(self) -> frozenset[Anomaly]:
        """What is out of the ordinary at present."""
        if not self._until_s:
            return frozenset()
        now_s = self._clock()
        self._until_s = {anomaly: until_s for anomaly, until_s in self._until_s.items() if until_s > now_s}
        return frozenset(self._until_s)

    def on_refusal(self) -> None:
        """Policy or gate refused a request that its client had signed."""
        now_s = self._clock()
        self._refusals.append(now_s)
        if len(self._refusals) == BURST and now_s - self._refusals[0] <= BURST_S:
            self._see(Anomaly.REFUSAL_BURST, refusals=BURST, seconds=round(now_s - self._refusals[0]))

    def on_gate(self, took_s: float) -> None:
        """The gate answered one call, or did not, after so long."""
        self._exchanges.append(took_s)
        mean_s = sum(self._exchanges) / len(self._exchanges)
        usual_s = self._usual_s
        full = len(self._exchanges) == LAST_EXCHANGES
        if full and usual_s is not None and mean_s > max(SLOW_LEAST_S, SLOW_FACTOR * usual_s):
            self._see(Anomaly.SLOW_GATE, mean_ms=round(mean_s * 1000), usual_ms=round(usual_s * 1000))
            # It takes as many again: rules that refuse on it would else refuse the first fast call after it, too.
            self._exchanges.clear()
        # What is slow becomes usual slowly.
        capped_s = took_s if usual_s is None else min(took_s, 2 * usual_s + 0.01)
        self._usual_s = capped_s if usual_s is None else usual_s + USUAL_SHARE * (capped_s - usual_s)

    def count(self, anomaly: Anomaly) -> None:
        """It was found, here or in a request."""
        name = f"anomalies|{anomaly}"
        self.counters[name] = self.counters.get(name, 0) + 1

    def _see(self, anomaly: Anomaly, **facts: int) -> None:
        """Told when it begins; while it lasts it is only prolonged."""
        if anomaly not in self.observed():
            self.count(anomaly)
            self._log.warning("anomaly", anomaly=anomaly.value, **facts)
        self._until_s[anomaly] = self._clock() + LASTS_S
