"""What a signer tells Prometheus of itself, its gate and, asked through the socket, its enclave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client.core import Metric

from appliance.durations import Durations
from appliance.metrics import counter, gauge, histogram
from appliance.signer import enclave_metrics
from enclave import wire

GATE_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Observed(Protocol):
    """What serves an enclave now."""

    async def observe(self, metrics: SignerMetrics) -> None:
        """Write present values: queues, links, and the enclave's status, None where it does not answer in time."""

    async def stop(self, signatures: tuple[str, ...]) -> wire.Stopped | None:
        """Give the enclave an order to freeze or unfreeze; None where it does not answer in time."""


class SignerMetrics:
    """Counts of one process; those of the enclave are the enclave's, of its present boot."""

    def __init__(self, commit_seconds: Durations, certificate_ends_s: Callable[[], Mapping[str, float]] = dict) -> None:
        """`commit_seconds`: the store's. `certificate_ends_s()`: when the certificates of each file end."""
        self._certificate_ends_s = certificate_ends_s
        self.commit_seconds = commit_seconds
        self.gate_seconds = Durations(GATE_BOUNDS_S)
        self.gate_outcomes: Counter[str] = Counter()
        self.enclave_connections = 0
        self.coordinator_connections: Counter[str] = Counter()
        self.coordinators_up: Mapping[str, bool] = {}
        self.queues: Mapping[str, int] = {}
        self.enclave: wire.Status | None = None
        self.attached: wire.Attached | None = None
        # Why there is no link to the enclave, and why the gate's last call had no answer; empty where all is well.
        self.enclave_reason = "not connected yet"
        self.gate_reason: str | None = None
        self.coordinator_reasons: Mapping[str, str] = {}
        self.serving: Observed | None = None

    async def refresh(self) -> None:
        """Ask for present values; those of an enclave that is away are unknown, and nothing is connected then."""
        if self.serving is not None:
            await self.serving.observe(self)
        else:
            self.enclave, self.queues = None, {}
            self.coordinators_up = dict.fromkeys(self.coordinators_up, False)

    def gate_answered(self, answer: wire.GateReply | wire.GateUnreachable, seconds: float) -> None:
        """One gate call is over. What a handler said is for the enclave to judge: only its status class counts here."""
        self.gate_seconds.observe(seconds)
        outcome = f"{answer.status // 100}xx" if isinstance(answer, wire.GateReply) else "unreachable"
        self.gate_outcomes[outcome] += 1

    def collect(self) -> Iterable[Metric]:
        """Every family, also where it has no value yet."""
        yield histogram("keymoot_signer_gate_seconds", "Duration of gate calls.", self.gate_seconds)
        yield counter("keymoot_signer_gate_calls", "Gate calls by outcome.", "outcome", self.gate_outcomes)
        yield counter(
            "keymoot_signer_connections",
            "Connections made, by peer: the enclave, or a coordinator.",
            "peer",
            {"enclave": self.enclave_connections}
            | {f"coordinator/{name}": count for name, count in self.coordinator_connections.items()},
        )
        yield gauge(
            "keymoot_signer_coordinator_up",
            "Whether the link to a coordinator is up.",
            "coordinator",
            {name: float(up) for name, up in self.coordinators_up.items()},
        )
        yield histogram("keymoot_signer_commit_seconds", "Duration of the store's transactions.", self.commit_seconds)
        yield gauge(
            "keymoot_signer_certificate_expires_timestamp_seconds",
            "When the first certificate of a file ends.",
            "file",
            self._certificate_ends_s(),
        )
        yield gauge("keymoot_signer_queue_length", "What waits in the signer's queues.", "queue", self.queues)
        yield from enclave_metrics.collect(self.enclave)
