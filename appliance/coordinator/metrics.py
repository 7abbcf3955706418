"""What a coordinator tells Prometheus: requests, ceremonies, API answers, pools, signers, queues."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping

from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric

from appliance.coordinator.listener import Listener
from appliance.coordinator.network import Network
from appliance.coordinator.network_views import show_pools
from appliance.coordinator.work import Work
from appliance.durations import DurationsBy
from appliance.metrics import counter, counters, gauge, histogram, histograms
from appliance.store import CoordinatorStore
from policies.roster import Roster

NO_OPERATION = "none"
# The client went away before the answer, or there was none.
GONE = "none"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiMetrics:
    """Counts and times the API's answers, by operation: the route's method and pattern, never a path as it came."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, ...]] = Counter()
        self.seconds = DurationsBy()

    def watch(self, app: web.Application) -> None:
        """Count every answer of `app`, however it came to be."""

        @web.middleware
        async def timed(request: web.Request, handler: Handler) -> web.StreamResponse:
            started_s, status = time.perf_counter(), GONE
            try:
                response = await handler(request)
                status = str(response.status)
                return response
            finally:
                operation = _operation(request)
                self.answers[operation, status] += 1
                self.seconds.observe(operation, time.perf_counter() - started_s)

        app.middlewares.insert(0, timed)


def _operation(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical}" if resource is not None else NO_OPERATION


class CoordinatorMetrics:
    """Reads everything at each scrape."""

    def __init__(
        self,
        roster: Roster,
        network: Network,
        work: Work,
        store: CoordinatorStore,
        api: ApiMetrics,
        certificate_ends_s: Callable[[], Mapping[str, float]],
        listeners: Mapping[str, Listener],
    ) -> None:
        """`certificate_ends_s()`: when the certificates of each file end, as Unix time."""
        self._certificate_ends_s, self._listeners = certificate_ends_s, listeners
        self._roster, self._network, self._work, self._store, self._api = roster, network, work, store, api

    def collect(self) -> Iterable[Metric]:
        """Every family, also where it has no value yet."""
        yield from self._collect_connections()
        yield from self._collect_requests()
        yield from self._collect_ceremonies()
        yield from self._collect_signers()
        yield from self._collect_pools()
        yield histogram(
            "keymoot_coordinator_commit_seconds", "Duration of the store's transactions.", self._store.commit_seconds
        )
        yield gauge(
            "keymoot_coordinator_certificate_expires_timestamp_seconds",
            "When the first certificate of a file ends.",
            "file",
            self._certificate_ends_s(),
        )
        sessions = {signer.name: self._network.signers.session(signer.index) for signer in self._roster.signers}
        yield gauge(
            "keymoot_coordinator_queue_length",
            "What waits in the coordinator's queues.",
            "queue",
            {"requests": self._work.under_way, "store": self._store.waiting, "presignatures": len(self._network.line)}
            | {f"to-signer/{name}": session.waiting for name, session in sessions.items() if session is not None},
        )

    def _collect_connections(self) -> Iterable[Metric]:
        listeners = self._listeners.items()
        yield gauge(
            "keymoot_coordinator_connections",
            "Open connections.",
            "listener",
            {what: float(listener.open) for what, listener in listeners},
        )
        yield counter(
            "keymoot_coordinator_connections_refused",
            "Connections that found no place.",
            "listener",
            {what: listener.refused for what, listener in listeners},
        )

    def _collect_requests(self) -> Iterable[Metric]:
        yield counters(
            "keymoot_coordinator_api_answers",
            "Answers of the API.",
            ["operation", "status"],
            self._api.answers,
        )
        yield histograms(
            "keymoot_coordinator_api_seconds", "Duration until the answer.", "operation", self._api.seconds
        )
        yield counters(
            "keymoot_coordinator_requests", "Accepted requests that ended.", ["kind", "outcome"], self._work.ended
        )
        yield histograms(
            "keymoot_coordinator_request_seconds", "From acceptance to the end.", "kind", self._work.seconds
        )
        yield from approvals_wanted(self._store)

    def _collect_ceremonies(self) -> Iterable[Metric]:
        ceremonies = self._network.ceremonies
        yield counters(
            "keymoot_coordinator_ceremonies",
            "Ceremonies that ended.",
            ["kind", "round", "outcome"],
            ceremonies.ended,
        )
        yield histograms("keymoot_coordinator_ceremony_seconds", "Duration of ceremonies.", "kind", ceremonies.seconds)
        yield GaugeMetricFamily(
            "keymoot_coordinator_ceremonies_open", "Ceremonies under way.", value=float(len(ceremonies))
        )

    def _collect_pools(self) -> Iterable[Metric]:
        pools = {"-".join(map(str, pool.committee)): pool for pool in show_pools(self._network, None).items}
        yield gauge(
            "keymoot_coordinator_presignatures",
            "Presignatures that can be named now.",
            "committee",
            {name: pool.available for name, pool in pools.items()},
        )
        yield gauge(
            "keymoot_coordinator_pool_spent_per_second",
            "Presignatures used, over the last minute.",
            "committee",
            {name: pool.spent_per_s for name, pool in pools.items()},
        )
        yield gauge(
            "keymoot_coordinator_pool_seconds_to_empty",
            "Until a pool is empty at that rate, without a refill.",
            "committee",
            {name: pool.seconds_to_empty for name, pool in pools.items() if pool.seconds_to_empty is not None},
        )
        marks = GaugeMetricFamily("keymoot_coordinator_pool_mark", "Marks of the pools.", labels=["committee", "mark"])
        for name, pool in pools.items():
            marks.add_metric([name, "low"], pool.low)
            marks.add_metric([name, "high"], pool.high)
            marks.add_metric([name, "recommended_low"], pool.recommended_low)
            marks.add_metric([name, "recommended_high"], pool.recommended_high)
        yield marks

    def _collect_signers(self) -> Iterable[Metric]:
        signers = self._network.signers
        online = signers.online()
        yield gauge(
            "keymoot_coordinator_signer_up",
            "Whether a signer is connected.",
            "signer",
            {signer.name: float(signer.index in online) for signer in self._roster.signers},
        )
        yield counter(
            "keymoot_coordinator_signer_connections",
            "How often a signer came online.",
            "signer",
            {signer.name: signers.connected[signer.index] for signer in self._roster.signers},
        )


def approvals_wanted(store: CoordinatorStore) -> Iterable[Metric]:
    """How many requests await approvals, and when the first of them ends for want of some."""
    yield GaugeMetricFamily(
        "keymoot_coordinator_approvals_awaited",
        "Requests that await approvals.",
        value=float(store.awaiting_approvals()),
    )
    deadline = GaugeMetricFamily(
        "keymoot_coordinator_approvals_deadline_timestamp_seconds", "When the first of them ends."
    )
    if (first_s := store.awaiting.first_s()) is not None:
        deadline.add_metric([], float(first_s))
    yield deadline
