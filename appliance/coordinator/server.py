"""The coordinator process: `keymoot coordinator run`. Composition root of everything in this package."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog
from aiohttp import web

from appliance import eventloop
from appliance.coordinator.admission import Admission
from appliance.coordinator.api import Api
from appliance.coordinator.approving import Deadlines
from appliance.coordinator.authorities import Authorities
from appliance.coordinator.batches import BatchSigning
from appliance.coordinator.changes import Changes
from appliance.coordinator.config import CoordinatorConfig, LimitSettings, load_config, load_roster, split_listen
from appliance.coordinator.convictions import FILE as CONVICTED_FILE
from appliance.coordinator.credentials import ClientKeys, Readers
from appliance.coordinator.execution import Execution
from appliance.coordinator.gateway import Gateway
from appliance.coordinator.identity import Identity
from appliance.coordinator.keybook import KeyBook
from appliance.coordinator.listener import Listener
from appliance.coordinator.metrics import ApiMetrics, CoordinatorMetrics
from appliance.coordinator.network import Network
from appliance.coordinator.network_views import sentence
from appliance.coordinator.signing import Signing
from appliance.coordinator.work import Work
from appliance.expiry import CertificateWatch, TlsFiles
from appliance.metrics import MetricsServer
from appliance.store import CoordinatorStore
from appliance.systemd import report, systemd
from appliance.telemetry import configure_logging
from appliance.tls import server_context
from policies.errors import Bug, CallerError
from policies.load import load_policy
from policies.notify import Notifier

SHUTDOWN_S = 3.0
# Of the port for signers, who keep two connections each.
SIGNERS_LIMITS = LimitSettings(connections=1024, connections_per_address=256)

log = structlog.get_logger()


def run(config_path: pathlib.Path) -> None:
    """Run until SIGTERM or SIGINT. Raises `CallerError` for a bad configuration, `Unavailable` for store or ports."""
    config = load_config(config_path)
    configure_logging("coordinator")
    eventloop.run(_run_until_signal(config_path, config))


async def _run_until_signal(config_path: pathlib.Path, config: CoordinatorConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Coordinator(config) as coordinator:
        loop.add_signal_handler(signal.SIGHUP, coordinator.reload, config_path)
        log.info("coordinator-started", network=config.network, name=config.name)
        coordinator.told.ready()
        await coordinator.run_until(stop)
        coordinator.told.stopping()
    log.info("coordinator-stopped")


class Coordinator:
    """All parts of one coordinator, started by entering and stopped by leaving the block."""

    def __init__(self, config: CoordinatorConfig) -> None:
        """Raises `CallerError`: configuration, roster, clients, TLS files or listening addresses."""
        self._config = config
        self._roster = load_roster(config)
        signers, api = config.signers, config.api
        self._signers_tls, self._api_tls = (
            TlsFiles(partial(server_context, *files, optional=optional), *files)
            for files, optional in (
                ((signers.certificate, signers.key, signers.client_ca), False),
                ((api.certificate, api.key, api.client_ca), True),
            )
        )
        self.certificates = CertificateWatch(
            [path for path in (signers.certificate, signers.client_ca, api.certificate, api.client_ca) if path],
            [self._signers_tls, self._api_tls],
            on_look=self._end_what_lost_its_certificate,
        )
        self._authorities = Authorities(signers.authorities)
        self._admission = Admission(*_credentials(config), api.limits, time.time, time.monotonic)
        self._stack = AsyncExitStack()
        self._failed: asyncio.Future[None] | None = None
        self.ports: dict[str, int] = {}
        self.listeners: dict[str, Listener] = {}
        self.network: Network
        self.told = systemd()

    async def __aenter__(self) -> Coordinator:
        """Open store and ports. Raises `Unavailable`."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run_until(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Raises what broke an invariant: the process must not go on then."""
        stopped = asyncio.ensure_future(stop.wait())
        if self._failed is None:
            raise Bug("run before it was started")
        ends: list[asyncio.Future[Any]] = [stopped, self._failed, self._loops]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        for ended in (self._failed, self._loops):
            if ended.done():
                ended.result()

    def reload(self, config_path: pathlib.Path) -> None:
        """Take the readers and the clients' keys from their files again; where that fails, those of before stay."""
        try:
            self._admission.replace(*_credentials(load_config(config_path)))
        except CallerError as error:
            log.error("reload-failed", reason=str(error)[:512])
        else:
            log.info("reloaded", what="api.readers and api.clients")

    async def _start(self) -> None:
        config, roster, stack = self._config, self._roster, self._stack
        self._failed = asyncio.get_running_loop().create_future()
        store = CoordinatorStore.open(config.state)
        stack.push_async_callback(store.close)
        # What only a restart can help must end this process, or nobody would restart it.
        store.recovery.on_broken = self._fail
        keybook = KeyBook(store, time.time)
        convicted = config.state.parent / CONVICTED_FILE
        self.network = network = Network(
            roster, config.pool, Changes(), keybook, os.urandom, convicted=convicted, wait=config.wait
        )
        signing = Signing(network.ceremonies, network.pools, network, network.recall, time.time)
        batches = BatchSigning(network.ceremonies, network.pools, network, network.recall, time.time)
        execution = Execution(store, roster, network, signing, batches, keybook)
        work = Work(store, roster, network, keybook, execution, os.urandom, time.time, self._fail)
        stack.push_async_callback(work.close)
        await work.resume()
        self.deadlines = Deadlines(store, time.time)
        self._loops = asyncio.create_task(_loops(network, self.certificates, self.told, store, self.deadlines))
        stack.push_async_callback(_cancel, self._loops)
        gateway = web.Application()
        gateway.add_routes(Gateway(roster, network.signers, self._authorities).routes())
        await self._listen("signers", gateway, config.signers.listen, self._signers_tls, SIGNERS_LIMITS)
        stack.callback(network.signers.end_all, "the coordinator is stopping")
        identity = Identity(config, roster, time.time())
        api = Api(store, roster, work, keybook, network, self._admission, identity, time.time).application()
        await self._start_metrics(api, work, store)
        await self._listen("api", api, config.api.listen, self._api_tls, config.api.limits)

    async def _start_metrics(self, api: web.Application, work: Work, store: CoordinatorStore) -> None:
        if self._config.metrics is None:
            return
        answers = ApiMetrics()
        answers.watch(api)
        server = MetricsServer(
            CoordinatorMetrics(
                self._roster, self.network, work, store, answers, self.certificates.ends_s, self.listeners
            )
        )
        self._stack.push_async_callback(server.close)
        self.ports["metrics"] = await server.start(self._config.metrics)

    def _end_what_lost_its_certificate(self, now_s: float) -> None:
        self.network.signers.end_expired(now_s)
        for listener in self.listeners.values():
            listener.end_withdrawn()

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _listen(self, what: str, app: web.Application, listen: str, tls: TlsFiles, limits: LimitSettings) -> None:
        listener = self.listeners[what] = Listener(what, app, tls, limits, self._fail)
        self._stack.push_async_callback(listener.close, SHUTDOWN_S)
        self.ports[what] = await listener.start(*split_listen(listen))


def _credentials(config: CoordinatorConfig) -> tuple[ClientKeys, Readers]:
    """Who may ask and who may read. Raises `CallerError`."""
    clients = load_policy(config.api.clients).clients
    return ClientKeys(clients, config.network), Readers(config.api.readers)


async def _loops(
    network: Network, certificates: CertificateWatch, told: Notifier, store: CoordinatorStore, deadlines: Deadlines
) -> None:
    async def state() -> str:
        return sentence(network, store.recovery.failure)

    async with asyncio.TaskGroup() as group:
        group.create_task(report(told, state))
        group.create_task(network.run())
        group.create_task(certificates.run())
        group.create_task(deadlines.run())


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
