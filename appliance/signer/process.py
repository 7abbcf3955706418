"""The signer process: `keymoot signer run`. Composition root of everything in this package."""

from __future__ import annotations

import asyncio
import importlib.metadata
import pathlib
import random
import signal
import time
from functools import partial

import structlog

from appliance import eventloop, relay
from appliance.expiry import CertificateWatch
from appliance.metrics import MetricsServer
from appliance.signer.config import SignerConfig, load_config
from appliance.signer.coordinator_link import CoordinatorLink
from appliance.signer.courier import Courier, Store
from appliance.signer.enclave_link import EnclaveLink
from appliance.signer.evidence import EvidenceFiles
from appliance.signer.flow import Backoff
from appliance.signer.gate_caller import GateCaller
from appliance.signer.metrics import SignerMetrics
from appliance.signer.status import StatusServer, sentence
from appliance.store.failures import Damaged, StoreFailed
from appliance.store.signer import SignerStore
from appliance.systemd import report, systemd
from appliance.telemetry import configure_logging
from enclave import wire
from policies.errors import CallerError, Unavailable
from policies.repeats import Repeats

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 5.0

log = structlog.get_logger()


def run(config_path: pathlib.Path) -> None:
    """Run until SIGTERM or SIGINT. Raises `CallerError` for a bad configuration, errors of the store."""
    config = load_config(config_path)
    configure_logging("signer")
    eventloop.run(_run_until_signal(config))


async def serve(config: SignerConfig, source: random.Random) -> None:
    """Serve one enclave, reconnecting, until cancelled. `source` gives the jitter of reconnects."""
    store = SignerStore.open(config.state)
    gate = None if config.gate is None else GateCaller.open(config.gate)
    certificates = CertificateWatch(_certificates(config), [] if gate is None else [gate.files])
    metrics = SignerMetrics(store.commit_seconds, certificates.ends_s)
    server = MetricsServer(metrics, metrics.refresh)
    status = StatusServer(config, metrics, importlib.metadata.version("keymoot"))
    backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S, source)
    repeats = Repeats(time.monotonic)
    log.info("signer-started", network=config.network, coordinators=[c.name for c in config.coordinators])
    notify = systemd()

    async def state() -> str:
        return sentence(await status.status())

    beside = [asyncio.create_task(certificates.run()), asyncio.create_task(report(notify, state))]
    try:
        if config.metrics is not None:
            await server.start(config.metrics)
        if config.status_socket is not None:
            await status.start(config.status_socket)
        notify.ready()
        while True:
            try:
                await serve_enclave(config, store, gate, source, backoff, metrics)
            except StoreFailed as error:
                # Told by the store itself. Attached again only when what the enclave decides can be kept.
                metrics.enclave_reason = str(error)[:512]
                await store.recovery.until_it_works()
            except (CallerError, Unavailable) as error:
                # Beside what ends a link: records or audit entries that do not fit what is stored.
                kind, told = type(error).__name__, str(error)[:512]
                metrics.enclave_reason = error.what if isinstance(error, Unavailable) else told
                retries = repeats.due("enclave", f"{kind} {told}")
                if retries is not None:
                    log.warning("enclave-link-down", kind=kind, reason=told, retries=retries)
            await asyncio.sleep(backoff.next_s())
    finally:
        notify.stopping()
        for task in beside:
            task.cancel()
        await status.close()
        await server.close()
        if gate is not None:
            await gate.close()
        await store.close()
        log.info("signer-stopped")


def _certificates(config: SignerConfig) -> list[pathlib.Path]:
    """Every file with certificates that this process uses. Those of coordinators are read at each connection."""
    found = [path for one in config.coordinators for path in (one.ca, one.certificate)]
    if config.gate is not None:
        found += [path for path in (config.gate.ca, config.gate.certificate) if path is not None]
    return found


async def serve_enclave(
    config: SignerConfig,
    store: Store,
    gate: GateCaller | None,
    source: random.Random,
    backoff: Backoff,
    metrics: SignerMetrics,
) -> None:
    """Attach to the enclave and carry its messages while it is there; raises why it ended."""
    version = importlib.metadata.version("keymoot")
    audit_seq, audit_head = store.audit_head()
    attach = wire.Attach(
        protocol=wire.PROTOCOL_VERSION,
        signer_version=version,
        prss=_readable(store, "prss"),
        peers=_readable(store, "peers"),
        audit_seq=audit_seq,
        audit_head=audit_head,
        counters=_counters(store),
    )
    enclave = await EnclaveLink.connect(config.enclave_socket, attach, config.network)
    backoff.reset()
    metrics.enclave_connections += 1
    log.info("enclave-attached", name=enclave.attached.name, gate_mode=enclave.attached.gate_mode)
    try:
        courier = Courier(enclave, store, gate, metrics, EvidenceFiles(config.state.parent / "evidence"))
        await courier.run(
            [
                CoordinatorLink(
                    settings,
                    lambda: relay.Announce(version, enclave.attached),
                    partial(courier.from_coordinator, settings.name),
                    partial(courier.lost, settings.name),
                    source,
                    partial(metrics.coordinator_connections.update, [settings.name]),
                )
                for settings in config.coordinators
            ]
        )
    finally:
        await enclave.close()


def _counters(store: Store) -> tuple[wire.Record, ...]:
    """The records of counters, up to the first that is missing or damaged: the enclave reads the audit chain then."""
    found: list[wire.Record] = []
    while len(found) < wire.MAX_COUNTER_RECORDS:
        record = _readable(store, "counters", f"counters-{len(found)}")
        if record is None:
            break
        found.append(record)
    return tuple(found)


def _readable(store: Store, kind: wire.RecordKind, name: str | None = None) -> wire.Record | None:
    """The record of `kind`, which has its name unless it says another; None where it is damaged, as if it had never
    been: the enclave makes another."""
    try:
        return store.record(kind, name or kind)
    except Damaged as error:
        log.error("record-damaged", reason=str(error)[:512])
        return None


async def _run_until_signal(config: SignerConfig) -> None:
    serving = asyncio.create_task(serve(config, random.SystemRandom()))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    await asyncio.wait([serving])
    if not serving.cancelled():
        serving.result()
