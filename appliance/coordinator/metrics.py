"""What a coordinator tells Prometheus: ceremonies, API answers, pools, signers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from appliance.coordinator.network import Network
from appliance.metrics import counter, gauge
from policies.roster import Roster


class CoordinatorMetrics:
    """Reads the network at each scrape; counts only the API's answers itself."""

    def __init__(self, roster: Roster, network: Network) -> None:
        self._roster, self._network = roster, network
        self._answers: Counter[str] = Counter()

    def watch(self, app: web.Application) -> None:
        """Count every answer of `app` by its HTTP status."""

        async def count(request: web.Request, response: web.StreamResponse) -> None:
            del request
            self._answers[str(response.status)] += 1

        app.on_response_prepare.append(count)

    def collect(self) -> Iterable[Metric]:
        """Every family, also where it has no value yet."""
        ceremonies = self._network.ceremonies
        ended = CounterMetricFamily(
            "keymoot_coordinator_ceremonies", "Ceremonies that ended.", labels=["kind", "outcome"]
        )
        for (kind, outcome), count in sorted(ceremonies.ended.items()):
            ended.add_metric([kind, outcome], count)
        yield ended
        yield GaugeMetricFamily(
            "keymoot_coordinator_ceremonies_open", "Ceremonies under way.", value=float(len(ceremonies))
        )
        yield counter("keymoot_coordinator_api_answers", "Answers of the API.", "status", self._answers)
        pools = self._network.pools
        yield gauge(
            "keymoot_coordinator_presignatures",
            "Presignatures that can be named now.",
            "committee",
            {"-".join(map(str, committee)): pools.available(committee) for committee in pools.committees()},
        )
        online = self._network.signers.online()
        yield gauge(
            "keymoot_coordinator_signer_up",
            "Whether a signer is connected.",
            "signer",
            {signer.name: float(signer.index in online) for signer in self._roster.signers},
        )
