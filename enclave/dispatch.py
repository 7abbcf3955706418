"""The enclave's surface: which message is handled where, in which phase. What is not listed is refused.

Before `Attach` only `Attach` and `StatusQuery` are handled; until `Attached` is the answer, nothing more; afterwards
everything but `Attach`. An error on the way of an order
becomes a report to its coordinator; an error of a frame is counted, since nothing about a frame is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any

from enclave.authorise import Authoriser
from enclave.batches import Batches
from enclave.channels.frames import CEREMONY_FRAME, HANDSHAKE_FRAME
from enclave.channels.handshake import Link
from enclave.creation import KeyCreation
from enclave.effects import Effects
from enclave.errors import CallerError, KeymootError, LinkFault, Refused, Unavailable
from enclave.ledger_keeping import LedgerKeeping
from enclave.meters import rule_label
from enclave.opening import Surroundings
from enclave.orders import CeremonyOrders
from enclave.recall import Recall
from enclave.standing import Standing
from enclave.tasks import Task, Timers
from enclave.wire import (
    PROTOCOL_VERSION,
    AbandonOrder,
    ActivateOrder,
    Attach,
    Attached,
    AuditPage,
    BatchOnlineOrder,
    BatchSignOrder,
    ConsentOrder,
    ForgetBatchOrder,
    GateReply,
    GateUnreachable,
    KeygenOrder,
    LinkReport,
    NonceReport,
    OnlineOrder,
    Order,
    OrderRefused,
    PeerFrame,
    Pools,
    PoolsOrder,
    PrepareOrder,
    Presence,
    PresignOrder,
    RecallOrder,
    SetupOrder,
    SignOrder,
    Status,
    StatusQuery,
    StopOrders,
    Stopped,
    Stored,
    ToEnclave,
)

MAX_COORDINATORS = 16
ATTACH_RETRY_S = 1.0
# Refused at once while the HSM is away. Signing orders are too, by the authoriser, in its own words.
NEED_HSM = (SetupOrder, KeygenOrder, ActivateOrder)


class Phase(Enum):
    """What the signer may say: see the module's docstring."""

    DETACHED = "no signer is attached"
    LOADING = "the attachment is under way"
    ATTACHED = "attached"


# Asked for each message; an enumeration's own lookup costs as much as a call.
_ATTACHED = Phase.ATTACHED


class Dispatch:
    """Routes what the signer says to where it is handled."""

    def __init__(
        self,
        around: Surroundings,
        orders: CeremonyOrders,
        batches: Batches,
        creation: KeyCreation,
        authoriser: Authoriser,
        recall: Recall,
        effects: Effects,
        timers: Timers,
        standing: Standing,
        keeping: LedgerKeeping,
        describe: Callable[[], Attached],
        status: Callable[[], Status],
        stop: Callable[[StopOrders], Stopped],
        begun: Callable[[int], None],
    ) -> None:
        """`stop` carries an order to freeze or unfreeze out; `begun(length)` is told how long the audit chain is."""
        self._around, self._orders, self._batches, self._creation = around, orders, batches, creation
        self._authoriser, self._effects, self._timers = authoriser, effects, timers
        self._standing, self._told, self._keeping = standing, recall, keeping
        self._describe, self._status, self._begun = describe, status, begun
        self._phase = Phase.DETACHED
        self._attachments = 0
        self._coordinators: set[str] = set()
        self.counters: dict[str, int] = {}
        self._routes: dict[type[Any], Callable[[Any], None]] = {
            Attach: self._on_attach,
            StatusQuery: self._on_status,
            Presence: self._on_presence,
            PeerFrame: self._on_frame,
            Order: self._on_order,
            GateReply: authoriser.gate.on_answer,
            GateUnreachable: authoriser.gate.on_answer,
            StopOrders: lambda message: effects.emit(stop(message)),
            Stored: lambda message: effects.on_stored(message.ticket),
            AuditPage: keeping.on_page,
        }
        self._order_routes: dict[type[Any], Callable[[Order, Any], Coroutine[Any, Any, None]]] = {
            PrepareOrder: self._prepare,
            SetupOrder: self._setup,
            KeygenOrder: self._keygen,
            PresignOrder: self._presign,
            SignOrder: self._sign,
            OnlineOrder: self._online,
            BatchSignOrder: self._sign,
            BatchOnlineOrder: self._online,
            AbandonOrder: self._abandon,
            ActivateOrder: self._activate,
            ForgetBatchOrder: self._forget_batch,
            PoolsOrder: self._pools,
            RecallOrder: self._recall,
            ConsentOrder: self._consent,
        }

    def handle(self, message: ToEnclave) -> None:
        """One message from the signer. Raises `CallerError` for one that is not due; nothing else escapes."""
        if self._phase is not _ATTACHED:
            allowed = (Attach, StatusQuery) if self._phase is Phase.DETACHED else (StatusQuery, Stored)
            if not isinstance(message, allowed):
                raise CallerError(f"{type(message).__name__} while {self._phase.value}")
        self._routes[type(message)](message)

    def on_detached(self) -> None:
        """The signer is gone, and with it the way to everybody. The pool stays."""
        self._phase = Phase.DETACHED
        self._attachments += 1
        self._effects.detach()
        self._keeping.on_detached()
        self._around.links.drop_all("the signer process went away")
        self._around.setup_turn.clear()

    # --- attachment ---

    def _on_attach(self, message: Attach) -> None:
        if message.protocol != PROTOCOL_VERSION:
            raise CallerError(f"the signer speaks protocol {message.protocol}, this enclave {PROTOCOL_VERSION}")
        self._phase = Phase.LOADING
        self._run(self._load(message, self._attachments))

    async def _load(self, message: Attach, attachment: int) -> None:
        """Unseal the PRSS seeds, waiting for the HSM as long as it takes; then say who we are."""
        around, unreadable = self._around, ""
        while around.prss.epoch == 0 and message.prss is not None:
            try:
                around.prss.install(await around.vault.open_seeds(message.prss, around.roster.digest()))
            except Unavailable:
                await self._timers.sleep(ATTACH_RETRY_S)
            except (CallerError, Refused) as error:
                # Regenerable: the next setup replaces them.
                unreadable = str(error)[:300]
                break
        while True:
            try:
                event, reason = await self._standing.load(message.peers, message.audit_seq)
                break
            except Unavailable:
                await self._timers.sleep(ATTACH_RETRY_S)
        if attachment != self._attachments:
            return
        missed = around.audit.adopt(message.audit_seq, message.audit_head)
        self._phase = Phase.ATTACHED
        self._effects.emit(self._describe())
        self._keeping.on_attached(message.counters)
        self._effects.audit(*missed)
        self._begun(message.audit_seq)
        if event:
            self._effects.audit(around.audit.record(event, reason=reason))
        if unreadable:
            self._effects.audit(around.audit.record("prss-unreadable", reason=unreadable))

    def _on_status(self, _: StatusQuery) -> None:
        self._effects.emit(self._status())

    # --- the network ---

    def _on_presence(self, message: Presence) -> None:
        self._know(message.coordinator)
        if not message.online:
            self._around.setup_turn.release(message.coordinator)
        self._around.links.on_presence(message.coordinator, message.online)

    def _on_frame(self, message: PeerFrame) -> None:
        try:
            if message.data[:1] == HANDSHAKE_FRAME:
                self._around.links.on_frame(message.coordinator, message.sender, message.data)
            elif message.data[:1] == CEREMONY_FRAME:
                self._around.ceremonies.on_frame(message.coordinator, message.sender, message.data)
            else:
                raise LinkFault(message.sender, "a frame of no known kind")
        except (LinkFault, CallerError, Refused, Unavailable) as fault:
            self._count(f"frames_refused|{_label(fault)}")

    def on_link(self, coordinator: str, peer: int, link: Link | None, reason: str) -> None:
        """A link came up, went down, or could not be made."""
        around = self._around
        if link is None:
            around.ceremonies.on_link_lost(coordinator, peer, reason)
        else:
            # SPEC 3: a peer that has rebooted has lost its part of every common batch.
            boot = link.peer.boot_nonce
            around.pool.drop(lambda _, key: key.boots.get(peer, boot) != boot)
            self._standing.on_link_up((coordinator, peer))
        self._effects.report(coordinator, LinkReport(peer, link is not None, reason[:500]))

    def on_failed_attempt(self, coordinator: str, peer: int, reason: str) -> None:
        """A handshake came to nothing; if a link is up, it stays."""
        if self._around.links.get(coordinator, peer) is None:
            self._effects.report(coordinator, LinkReport(peer, False, reason[:500]))

    # --- orders ---

    def _know(self, coordinator: str) -> None:
        """Bounds what is kept by coordinator. Raises `CallerError` beyond."""
        if coordinator not in self._coordinators:
            if len(self._coordinators) >= MAX_COORDINATORS:
                raise CallerError(f"more than {MAX_COORDINATORS} coordinators")
            self._coordinators.add(coordinator)

    def _on_order(self, order: Order) -> None:
        self._know(order.coordinator)
        self._run(self._carry_out(order))

    async def _carry_out(self, order: Order) -> None:
        try:
            if isinstance(order.body, NEED_HSM):
                self._around.vault.require_hsm()
            await self._order_routes[type(order.body)](order, order.body)
        except (Refused, CallerError, Unavailable) as error:
            self._count(f"orders_refused|{_label(error)}")
            self._effects.report(order.coordinator, OrderRefused(order.body.ceremony, str(error)[:500]))

    async def _prepare(self, order: Order, body: PrepareOrder) -> None:
        if body.purpose == "setup":
            # SPEC 1.7
            if self._around.ceremonies.running("setup"):
                raise Refused("busy", "a setup is under way")
            self._around.setup_turn.take(order.coordinator, body.ceremony)
        nonce = self._around.nonces.issue(order.coordinator, body.purpose)
        self._effects.report(order.coordinator, NonceReport(body.ceremony, nonce))

    async def _setup(self, order: Order, body: SetupOrder) -> None:
        self._orders.start_setup(order.coordinator, body)

    async def _keygen(self, order: Order, body: KeygenOrder) -> None:
        self._creation.start(order.coordinator, body, order.answer)

    async def _consent(self, order: Order, body: ConsentOrder) -> None:
        await self._creation.consent(order.coordinator, body, order.answer)

    async def _presign(self, order: Order, body: PresignOrder) -> None:
        self._batches.start(order.coordinator, body)

    def _sign(self, order: Order, body: SignOrder | BatchSignOrder) -> Coroutine[Any, Any, None]:
        return self._authoriser.authorise(order.coordinator, body, order.key, order.answer)

    def _online(self, order: Order, body: OnlineOrder | BatchOnlineOrder) -> Coroutine[Any, Any, None]:
        return self._authoriser.online.give(order.coordinator, body, order.key)

    async def _recall(self, order: Order, body: RecallOrder) -> None:
        self._told.tell(order.coordinator, body, order.answer)

    async def _abandon(self, order: Order, body: AbandonOrder) -> None:
        self._authoriser.book.abandon(order.coordinator, body.ceremony)
        self._around.ceremonies.abandon(order.coordinator, body.ceremony)
        self._around.setup_turn.release(order.coordinator, body.ceremony)

    async def _activate(self, order: Order, body: ActivateOrder) -> None:
        record = await self._around.vault.open_key(order.key, body.key_id)
        await self._orders.activate(order.coordinator, body.ceremony, record, body.acknowledgements)

    async def _forget_batch(self, order: Order, body: ForgetBatchOrder) -> None:
        self._around.pool.drop(lambda sid, key: sid == body.sid and key.coordinator == order.coordinator)
        await self._pools(order, PoolsOrder(body.ceremony))

    async def _pools(self, order: Order, _: PoolsOrder) -> None:
        batches = tuple(self._around.pool.states(order.coordinator))
        self._effects.report(order.coordinator, Pools(batches))

    # --- tasks ---

    def _run(self, routine: Coroutine[Any, Any, None]) -> None:
        Task(routine, self._on_end).start()

    def _on_end(self, task: Task[None]) -> None:
        if isinstance(task.outcome, KeymootError):
            self._count("tasks_failed")

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1


def _label(error: KeymootError) -> str:
    """As what an error on the way of an order or frame is counted."""
    if isinstance(error, Refused):
        return rule_label(error.rule)
    if isinstance(error, Unavailable):
        return "unavailable"
    return "link" if isinstance(error, LinkFault) else "malformed"
