"""Prometheus metrics of a process: what to tell is read at the scrape, on a listener of its own on loopback."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Protocol

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

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


class Durations:
    """How long something took, in seconds, counted in buckets up to `bounds_s`."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(self._bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    def family(self, name: str, text: str) -> Metric:
        """The histogram as Prometheus reads it: cumulative buckets."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds_s), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum_s)


def counter(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    """A family of counters that differ in one label."""
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family


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
