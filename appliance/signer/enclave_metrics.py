"""What an enclave tells in its `Status`, as Prometheus reads it. What is not in these tables is not told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from enclave import wire

T = TypeVar("T")

STATES = ("ready", "waiting", "hsm-away")
AWAY = "away"


@dataclass(frozen=True)
class Family:
    """One metric: its name without `keymoot_enclave_`, its help, and the names of its labels."""

    name: str
    text: str
    labels: tuple[str, ...] = ()


COUNTERS = {
    "ceremonies_started": Family("ceremonies_started", "Ceremonies begun.", ("kind",)),
    "ceremonies_ended": Family("ceremonies", "Ceremonies that ended.", ("kind", "round", "outcome")),
    "requests_authorized": Family("requests_authorized", "Attempts that policy and gate agreed to."),
    "requests_refused": Family("requests_refused", "Requests refused, by rule.", ("rule",)),
    "refusals_not_audited": Family("refusals_not_audited", "Refusals of requests with enough refusals audited."),
    "requests_recalled": Family("requests_recalled", "Attempts that were answered as before."),
    "orders_refused": Family("orders_refused", "Other orders refused, by rule.", ("rule",)),
    "online_refused": Family("online_refused", "Online steps refused."),
    "shares_given": Family("shares_given", "Signature shares given out."),
    "online_us": Family("online_microseconds", "Time spent on online steps.", ("phase",)),
    "online_cpu_us_total": Family("online_cpu_microseconds", "CPU time spent on online steps."),
    "gate": Family("gate_decisions", "Gate conversations that ended.", ("outcome",)),
    "gate_tries": Family("gate_tries", "Gate calls that brought no decision.", ("outcome",)),
    "frames_refused": Family("frames_refused", "Frames that could not be taken.", ("reason",)),
    "frames_of_no_ceremony": Family("frames_of_no_ceremony", "Frames of ceremonies that are not under way."),
    "convictions": Family("convictions", "Charges that convicted a signer or named a group (SPEC 0.11).", ("kind",)),
    "peer_states": Family("peer_states", "States of peers that were refused, or accepted by hand.", ("event",)),
    "stop_orders": Family("stop_orders", "Orders to freeze or unfreeze, by what came of them.", ("outcome",)),
    "policy_reloads": Family("policy_reloads", "How often the policy was read again.", ("outcome",)),
    "anomalies": Family("anomalies", "What was out of the ordinary.", ("anomaly",)),
    "tasks_failed": Family("tasks_failed", "Tasks that ended with an error nobody was told of."),
    "hsm_openings": Family("hsm_openings", "How often the HSM was opened, all but the first again.", ("outcome",)),
    "hsm_failed_jobs": Family("hsm_failed_jobs", "HSM jobs that failed."),
}
GAUGES = {
    "presignatures": Family("presignatures", "Presignatures in the pool."),
    "ceremonies": Family("ceremonies_open", "Ceremonies under way."),
    "requests": Family("requests_remembered", "Requests that are remembered."),
    "gate_conversations": Family("gate_conversations_open", "Requests that wait for the gate."),
    "freezes": Family("freezes", "Patterns of labels that this signer is frozen for."),
    "prss_epoch": Family("prss_epoch", "Epoch of the PRSS seeds, 0 before the setup."),
    "counters": Family("counters", "Counters of limits that count something."),
    "audit_seq": Family("audit_entries", "Number of the last entry of the audit chain."),
    "peer_refused": Family("peer_refused", "1 for each peer that is refused now.", ("signer", "reason")),
    "clock_off": Family(
        "clock_off_seconds", "By how much this machine's clock is ahead of a peer's or behind it.", ("signer", "side")
    ),
    "queue": Family("queue_length", "Messages or jobs that wait.", ("queue",)),
    "links": Family("links", "Links with the other enclaves.", ("coordinator", "state")),
}
DURATIONS = {
    "hsm": Family("hsm_seconds", "HSM calls that went well.", ("operation",)),
    "gate": Family("gate_seconds", "Gate conversations, from the first call to the decision."),
}
_PREFIX = "keymoot_enclave_"
_BOUNDS = (*(str(bound / 1_000_000) for bound in wire.DURATION_BOUNDS_US), "+Inf")


def collect(status: wire.Status | None) -> Iterable[Metric]:
    """Every family, also where it has no value; no values for an enclave that is away (None)."""
    state = GaugeMetricFamily(_PREFIX + "state", "1 for the state the enclave is in.", labels=["state"])
    for name in (*STATES, AWAY):
        state.add_metric([name], float(name == (status.state if status is not None else AWAY)))
    yield state
    for key, family in COUNTERS.items():
        counters = CounterMetricFamily(_PREFIX + family.name, family.text, labels=family.labels)
        for labels, count in _values(key, family, status.counters if status else {}):
            counters.add_metric(labels, count)
        yield counters
    for key, family in GAUGES.items():
        gauges = GaugeMetricFamily(_PREFIX + family.name, family.text, labels=family.labels)
        for labels, value in _values(key, family, status.gauges if status else {}):
            gauges.add_metric(labels, value)
        yield gauges
    yield from _policy(status)
    for key, family in DURATIONS.items():
        histogram = HistogramMetricFamily(_PREFIX + family.name, family.text, labels=family.labels)
        for labels, told in _values(key, family, status.durations if status else {}):
            histogram.add_metric(labels, _buckets(told), told[-1] / 1_000_000)
        yield histogram


def _policy(status: wire.Status | None) -> Iterable[Metric]:
    policy = None if status is None else status.policy
    info = GaugeMetricFamily(_PREFIX + "policy_info", "1 for the digest of the policy in force.", labels=["digest"])
    loaded = GaugeMetricFamily(_PREFIX + "policy_loaded_timestamp_seconds", "When the policy in force was read.")
    trouble = GaugeMetricFamily(_PREFIX + "policy_outdated", "1 where a policy read later could not be used.")
    if policy is not None:
        info.add_metric([policy.digest.hex()], 1.0)
        loaded.add_metric([], float(policy.loaded_at_s))
        trouble.add_metric([], float(bool(policy.trouble)))
    yield from (info, loaded, trouble)


def _values(key: str, family: Family, told: Mapping[str, T]) -> Iterable[tuple[list[str], T]]:
    """The labels and values of one family, in order."""
    for name, value in sorted(told.items()):
        found, *labels = name.split("|")
        if found == key and len(labels) == len(family.labels):
            yield labels, value


def _buckets(told: tuple[int, ...]) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip(_BOUNDS, told[:-1], strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
