"""Prometheus metrics of a process: what to tell is read at the scrape, on a listener of its own on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Protocol

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from appliance.durations import Durations, DurationsBy
from policies.errors import CallerError, Unavailable

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHUTDOWN_S = 1.0
# Metrics tell of a network's traffic and are served in plain: to this machine alone.
LoopbackListen = Annotated[str, msgspec.Meta(pattern=r"^(127\.0\.0\.1|\[::1\]):[0-9]{1,5}$(?!\n)")]


class Source(Protocol):
    """What a process tells of itself."""

    def collect(self) -> Iterable[Metric]:
        """All metrics, with their present values. Quick: it runs in the event loop."""


def histogram(name: str, text: str, durations: Durations) -> Metric:
    """A histogram without labels."""
    return HistogramMetricFamily(name, text, buckets=durations.buckets(), sum_value=durations.sum_s)


def histograms(name: str, text: str, label: str, by: DurationsBy) -> Metric:
    """A family of histograms that differ in one label."""
    family = HistogramMetricFamily(name, text, labels=[label])
    for value, durations in sorted(by.by_label.items()):
        family.add_metric([value], durations.buckets(), durations.sum_s)
    return family


def counters(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], int]) -> Metric:
    """A family of counters that differ in several labels."""
    family = CounterMetricFamily(name, text, labels=labels)
    for found, count in sorted(values.items()):
        family.add_metric(found, count)
    return family


def counter(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    """A family of counters that differ in one label."""
    return counters(name, text, [label], {(value,): count for value, count in values.items()})


def gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """A family of gauges that differ in one label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in sorted(values.items()):
        family.add_metric([value], number)
    return family


def exposition(source: Source) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Registered(source))
    return generate_latest(registry)


class MetricsServer:
    """Serves `/metrics` of one source until closed. `refresh` is awaited before each answer, one at a time."""

    def __init__(self, source: Source, refresh: Callable[[], Awaitable[None]] | None = None) -> None:
        self._source, self._refresh = source, refresh
        self._scraping = asyncio.Lock()
        self._runner: web.AppRunner | None = None

    async def start(self, listen: str) -> int:
        """Listen; the port. Raises `CallerError` for a port above 65535, `Unavailable` where it is taken."""
        host, _, port = listen.rpartition(":")
        if int(port) > 65_535:
            raise CallerError(f"metrics: {listen}: there is no port {port}")
        app = web.Application()
        app.add_routes([web.get(PATH, self._answer)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            await self.close()
            raise Unavailable(
                f"cannot listen on {listen} for metrics: {error.strerror}", "free the port or name another"
            ) from error
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        del request
        async with self._scraping:
            if self._refresh is not None:
                await self._refresh()
            return web.Response(body=exposition(self._source), headers={"content-type": CONTENT_TYPE})


class _Registered:
    """A source as the client library's registry takes it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        return self._source.collect()
