"""The routing between enclave, coordinators, gate and store while one connection to the enclave lasts.

Order of effects: a report leaves only after its audit entries are on disk, `Stored` is said only after the
records are. Everything that waits for the disk leaves in the order in which the enclave said it. Authorizations alone
do not wait: they give nothing away, and the share that follows one goes to the disk with the entries of both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import NoReturn, Protocol

import structlog

from appliance import relay
from appliance.signer.coordinator_link import CoordinatorLink
from appliance.signer.departures import Departures
from appliance.signer.enclave_link import EnclaveLink
from appliance.signer.evidence import EvidenceFiles
from appliance.signer.flow import until_first_ends
from appliance.signer.gate_caller import GateCaller
from appliance.signer.gate_calls import AT_ONCE as GATE_CALLS_AT_ONCE
from appliance.signer.gate_calls import GateCalls
from appliance.signer.held_entries import HeldEntries
from appliance.signer.key_pages import KeyPages
from appliance.signer.metrics import SignerMetrics
from appliance.signer.status import condition_of
from appliance.store.certificates import Certificate
from enclave import wire
from policies.errors import Unavailable
from policies.repeats import Allowance, Repeats
from policies.signed_requests import claimed_name

ORDERS_TOLD_PER_S, ORDERS_TOLD_AT_ONCE = 500.0, 5000
OWN_QUOTA = "signer"
METRICS_QUOTA = "metrics"
STATUS_TIMEOUT_S = 2.0
NOTHING: Mapping[str, relay.Up] = {}
AT_ONCE = (wire.GatePending, wire.Authorized, wire.BatchAuthorized)
"""Reports that leave before their audit entries are on disk: nothing was spent, and nothing can be signed with them."""

LOGGED = (wire.SignOrder, wire.BatchSignOrder, wire.KeygenOrder)
OF_A_KEY = (wire.SignOrder, wire.OnlineOrder, wire.BatchSignOrder, wire.BatchOnlineOrder, wire.ActivateOrder)

log = structlog.get_logger()


class Store(Protocol):
    """What the courier needs of `appliance.store`: sealed records and the audit chain, in call order."""

    def record(self, kind: wire.RecordKind, name: str) -> wire.Record | None:
        """The newest record of that kind and name."""

    def audit_head(self) -> tuple[int, bytes]:
        """Number and hash of the last entry on disk."""

    def put_records(self, records: Sequence[wire.Record], audit: Sequence[wire.AuditEntry] = ()) -> Awaitable[None]:
        """Done when the records are on disk."""

    def append_audit(
        self,
        entries: Sequence[wire.AuditEntry],
        certificates: Sequence[Certificate] = (),
        answer: wire.Answer | None = None,
    ) -> Awaitable[None]:
        """Done when the entries are on disk, and with them certificates of keys and an answer to a request."""

    def answer(self, name: bytes) -> wire.Answer | None:
        """The newest answer under the name of a request."""

    def audit_entries(self, after_seq: int = 0, limit: int = 1000) -> list[wire.AuditEntry]:
        """At most `limit` entries after number `after_seq`, in order."""

    def certificates_after(self, seq: int, key_id: str, limit: int) -> tuple[int, list[tuple[int, Certificate]]]:
        """At most `limit` numbered certificates, and the number after which they come."""


class Courier:
    """Carries messages for one attached enclave. `run` ends when the enclave goes; links end with it."""

    def __init__(
        self,
        enclave: EnclaveLink,
        store: Store,
        gate: GateCaller | None,
        metrics: SignerMetrics,
        evidence: EvidenceFiles,
    ) -> None:
        self._enclave = enclave
        self._store = store
        self._metrics = metrics
        self._evidence = evidence
        self._status_asked: asyncio.Future[wire.Status] | None = None
        self._stops: dict[int, asyncio.Future[wire.Stopped]] = {}
        self._stop_ticket = 0
        self._links: dict[str, CoordinatorLink] = {}
        self._pages = KeyPages((), lambda *question: self._store.certificates_after(*question), self._cannot_read)
        self._departures = Departures(enclave.resume)
        self._held = HeldEntries()
        self._repeats = Repeats(time.monotonic)
        self._orders_told: dict[str, Allowance] = {}
        weak = enclave.attached.gate_mode == "status"
        self._gate_calls = GateCalls(gate, partial(enclave.send, OWN_QUOTA), metrics, self._repeats, weak)

    async def run(self, links: Sequence[CoordinatorLink]) -> None:
        """Serve until the enclave or the store fails; raises why. Commits under way are awaited before.

        Raises `LinkDown`, `LinkOverflow` or `Malformed` for the enclave; errors of the store as they come.
        """
        self._links = {link.name: link for link in links}
        self._orders_told = {
            name: Allowance(time.monotonic, ORDERS_TOLD_PER_S, ORDERS_TOLD_AT_ONCE) for name in self._links
        }
        self._pages = KeyPages(links, self._store.certificates_after, self._cannot_read)
        for name in self._links:
            self.lost(name)
        self._metrics.serving = self
        try:
            await until_first_ends(
                self._enclave.serve(self._from_enclave),
                self._departures.run(),
                self._tell_condition(),
                self._commit_held(),
                *(link.run() for link in links),
                *(self._pages.answer(link) for link in links),
                *(self._gate_calls.work() for _ in range(GATE_CALLS_AT_ONCE)),
            )
        finally:
            self._metrics.serving = None
            await self._departures.settle()
            # An enclave that was killed cannot say again what it said.
            if held := self._held.take():
                await self._store.append_audit(held)

    # --- coordinator → enclave --------------------------------------------------------------------------

    def from_coordinator(self, name: str, message: relay.Down) -> None:
        """Pass a coordinator's message on, an order with the sealed record of its key.

        Raises `LinkOverflow` or `Malformed` (too large): both are the fault of that coordinator's link.
        """
        match message:
            case relay.OrderDown():
                body = message.body
                self._log_order(name, body)
                self._enclave.send(name, wire.Order(name, body, self._key_record(body), self._answer(body)))
            case relay.Online(indices):
                self._enclave.send(name, wire.Presence(name, indices))
            case relay.Deliver(sender, data):
                self._enclave.send(name, wire.PeerFrame(name, sender, data))
            case relay.KeysAfter():
                self._pages.ask(name, message)

    def _log_order(self, name: str, body: wire.OrderBody) -> None:
        """One line for each order that a client's request is behind, as far as a coordinator is not flooding."""
        if not isinstance(body, LOGGED):
            return
        for request in _requests(body):
            not_told = self._orders_told[name].take()
            if not_told is not None:
                facts = {
                    "request_id": request.request_id,
                    "order": type(body).__name__,
                    "ceremony": body.ceremony.hex(),
                }
                log.info("order", coordinator=name, **facts, **({"not_told": not_told} if not_told else {}))

    def lost(self, name: str) -> None:
        """Tell the enclave that the link to coordinator `name` is down."""
        self._enclave.send(OWN_QUOTA, wire.Presence(name, ()))

    def _answer(self, body: wire.OrderBody) -> wire.Answer | None:
        """What is kept under the name of the request that an order carries (SPEC 4.10). The enclave checks the name."""
        requests = _requests(body)
        if not requests:
            return None
        request = requests[0]
        name = claimed_name(self._enclave.attached.network, request.jws, request.body)
        try:
            return None if name is None else self._store.answer(name)
        except Unavailable as error:
            self._cannot_read(error)
            return None

    def _audit_after(self, after: int) -> tuple[wire.AuditEntry, ...]:
        try:
            return tuple(self._store.audit_entries(after, wire.MAX_AUDIT_ENTRIES))
        except Unavailable as error:
            self._cannot_read(error)
            return ()

    def _cannot_read(self, error: Unavailable) -> None:
        before = self._repeats.due("store", str(error))
        if before is not None:
            log.error("store-unreadable", reason=str(error)[:512], before=before)

    def _key_record(self, body: wire.OrderBody) -> wire.Record | None:
        return self._read_record(body.key_id) if isinstance(body, OF_A_KEY) else None

    def _read_record(self, key_id: str) -> wire.Record | None:
        """None where the record cannot be read: the enclave refuses then, for this key alone."""
        try:
            return self._store.record("key", key_id)
        except Unavailable as error:
            before = self._repeats.due(f"record {key_id}", str(error))
            if before is not None:
                log.error("record-unreadable", key=key_id, reason=str(error)[:512], before=before)
            return None

    # --- enclave → everybody ----------------------------------------------------------------------------

    def _from_enclave(self, message: wire.FromEnclave) -> None:
        """Carry one message. Nothing more is read of the enclave while too much waits for the disk."""
        match message:
            case wire.CallGate():
                self._gate_calls.put(message)
            case wire.Report(coordinator, body, audit, kept):
                self._report(coordinator, body, audit, kept)
            case wire.ToPeer(coordinator, receiver, bulk, data):
                self._to_coordinator(coordinator, relay.Forward(receiver, data), bulk=bulk)
            case wire.Store(ticket, records):
                self._departures.add(
                    self._store.put_records(records, self._held.take()),
                    partial(self._enclave.send, OWN_QUOTA, wire.Stored(ticket)),
                )
            case wire.Audit(entries):
                self._departures.add(self._store.append_audit(self._held.take(entries)), lambda: None)
            case wire.EvidencePart():
                whole = self._evidence.take(message)
                if whole is not None:
                    self._departures.add(self._evidence.keep(message, whole), lambda: None)
            case wire.Status():
                self._on_status(message)
            case wire.WantAudit(after):
                self._enclave.send(OWN_QUOTA, wire.AuditPage(self._audit_after(after)))
            case wire.Stopped():
                self._on_stopped(message)
            case wire.Attached():
                raise wire.Malformed("the enclave attached twice on one connection")
        if self._departures.full:
            self._enclave.pause()

    async def _commit_held(self) -> NoReturn:
        """Entries that no share has taken along go to the disk by themselves."""
        while True:
            await self._held.due()
            self._departures.add(self._store.append_audit(self._held.take()), lambda: None)

    def _report(
        self, coordinator: str, body: wire.ReportBody, audit: tuple[wire.AuditEntry, ...], kept: wire.Kept | None
    ) -> None:
        """To the coordinator it is for; what concerns the others too, to all."""
        message = relay.ReportUp(body)
        if isinstance(body, AT_ONCE):
            self._to_coordinator(coordinator, message, bulk=False)
            self._held.put(audit)
            return
        then = partial(self._to_coordinator, coordinator, message, bulk=False)
        certificates: Sequence[Certificate] = ()
        if isinstance(body, wire.SetupDone):
            self._enclave.note_setup(body.epoch)
            then = partial(self._to_all, message)
        elif isinstance(body, wire.KeysActivated):
            certificates = body.certificates
            then = partial(self._to_all, relay.KeyAdded(), {coordinator: message})
        answer = wire.Answer(kept, body) if kept is not None and isinstance(body, wire.KeptReport) else None
        commit = self._store.append_audit(self._held.take(audit), certificates, answer) if audit else None
        self._departures.add(commit, then)

    def _to_coordinator(self, name: str, message: relay.Up, *, bulk: bool) -> None:
        """Send, or drop where the link is down or not configured: the enclave was told (`Presence`)."""
        link = self._links.get(name)
        if link is None or not link.send(message, bulk=bulk):
            before = self._repeats.due(f"dropped to {name}", type(message).__name__)
            if before is not None:
                log.info("message-dropped", coordinator=name, message=type(message).__name__, before=before)

    def _to_all(self, message: relay.Up, instead: Mapping[str, relay.Up] = NOTHING) -> None:
        """Tell every coordinator whose link is up; some of them, by name, something else `instead`."""
        for name, link in self._links.items():
            link.send(instead.get(name, message), bulk=False)

    # --- metrics ----------------------------------------------------------------------------------------

    async def observe(self, metrics: SignerMetrics) -> None:
        """Write present values; waits at most 2 s for the enclave."""
        metrics.enclave, metrics.attached = await self._status(), self._enclave.attached
        metrics.queues = {
            "commits": len(self._departures),
            "gate-calls": len(self._gate_calls),
            "to-enclave": self._enclave.waiting,
            **{f"to-coordinator/{name}": link.waiting for name, link in self._links.items()},
        }
        metrics.coordinators_up = {name: link.up for name, link in self._links.items()}
        metrics.coordinator_reasons = {name: link.reason for name, link in self._links.items()}

    async def stop(self, signatures: tuple[str, ...]) -> wire.Stopped | None:
        """Give the enclave an order to freeze or unfreeze. What it answers, None where it does not in time."""
        self._stop_ticket = ticket = self._stop_ticket + 1
        asked = self._stops[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._enclave.send(OWN_QUOTA, wire.StopOrders(ticket, signatures))
            await asyncio.wait([asked], timeout=STATUS_TIMEOUT_S)
            return asked.result() if asked.done() else None
        finally:
            del self._stops[ticket]

    def _on_stopped(self, stopped: wire.Stopped) -> None:
        log.warning("stop-order", refused=stopped.refused, frozen=[freeze.pattern for freeze in stopped.freezes])
        asked = self._stops.get(stopped.ticket)
        if asked is not None and not asked.done():
            asked.set_result(stopped)

    async def _tell_condition(self) -> NoReturn:
        """Tell every coordinator, again and again, how this signer finds its enclave and its gate."""
        while True:
            status = await self._status()
            condition = condition_of(status, self._metrics.gate_reason, int(time.time()))
            for link in self._links.values():
                link.send(condition, bulk=False)
            await asyncio.sleep(relay.CONDITION_S)

    async def _status(self) -> wire.Status | None:
        """The enclave's status. An enclave that does not answer is not asked again until it has."""
        if self._status_asked is None:
            self._status_asked = asyncio.get_running_loop().create_future()
            self._enclave.send(METRICS_QUOTA, wire.StatusQuery())
        asked = self._status_asked
        await asyncio.wait([asked], timeout=STATUS_TIMEOUT_S)
        return asked.result() if asked.done() else None

    def _on_status(self, status: wire.Status) -> None:
        asked, self._status_asked = self._status_asked, None
        if asked is None:
            raise wire.Malformed("the enclave told its status without being asked")
        asked.set_result(status)


def _requests(body: wire.OrderBody) -> tuple[wire.ClientRequest, ...]:
    """The clients' requests that an order carries."""
    if isinstance(body, (wire.SignOrder, wire.BatchSignOrder, wire.RecallOrder)):
        return (body.request,)
    return body.requests if isinstance(body, wire.KeygenOrder) else ()
