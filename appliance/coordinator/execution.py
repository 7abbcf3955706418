"""Carrying out accepted requests: what comes of each is on disk when its execution returns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from appliance.api.batches import BatchResult, BatchState
from appliance.api.models import KeyState, Reason, SignatureState, SignatureValue
from appliance.coordinator.batches import BatchRequest, BatchSigning, Item, ItemResult
from appliance.coordinator.carrying import LastRefusals, brings_more, carried
from appliance.coordinator.errors import CeremonyEnded, Rejected
from appliance.coordinator.keybook import KeyBook
from appliance.coordinator.keygen import Pending, keygen
from appliance.coordinator.limits import MAX_AWAITING
from appliance.coordinator.network import Network
from appliance.coordinator.signing import Signing, SigningRequest
from appliance.store import CoordinatorStore
from appliance.store.accepted import AWAITING, CONFLICT
from appliance.store.approvals import ApprovalRow
from appliance.store.awaiting import Awaited
from appliance.store.failures import QueueFull, StoreFailed
from appliance.store.progress import Progress
from appliance.store.waiting import Waiting
from enclave import wire
from policies.errors import Unavailable
from policies.gate_messages import show_time
from policies.roster import Roster
from policies.signed_requests import claimed_client, claimed_expiry_s

KEYGENS_AT_ONCE = 4
APPROVALS_RULE = "policy/approvals"
TOO_MANY_AWAIT = "approvals/too-many"
QUEUE_PAUSE_S = 0.1
GATE_PENDING = "gate/pending"

T = TypeVar("T")
OnPending = Callable[[Waiting], Awaitable[None]]

log = structlog.get_logger()


class Ended(msgspec.Struct, frozen=True):
    """The state in which a request has ended, and of one for a single signature that signature."""

    state: str
    signature: SignatureValue | None = None


class Execution:
    """One request each; raises `Unavailable` where its end could not be written down."""

    def __init__(
        self,
        store: CoordinatorStore,
        roster: Roster,
        network: Network,
        signing: Signing,
        batch_signing: BatchSigning,
        keybook: KeyBook,
    ) -> None:
        self._store, self._roster, self._network = store, roster, network
        self._signing, self._batch_signing, self._keybook = signing, batch_signing, keybook
        self._keygen_slots = asyncio.Semaphore(KEYGENS_AT_ONCE)
        self.refusals = LastRefusals(network.signers.policy_digest)
        self._waited: set[str] = set()
        """Requests for which a gate needed time."""

    async def key(
        self, request_id: str, client: wire.ClientRequest, label: str, *, again: bool, resumed: bool = False
    ) -> Ended:
        """A key. Returns how the request has ended, here as in the others.

        `again`: it may have been answered before; `resumed`: signers may be on their way back.
        """
        network = self._network
        everybody = partial(network.everybody, patient=resumed)
        waiting = self._waited_before(request_id) if resumed else None
        pending = Pending(partial(self._pending, request_id, _shown_nowhere), time.time, waiting)
        try:
            key = await keygen(
                network.ceremonies,
                self._roster,
                client,
                label,
                network.recall,
                everybody,
                pending,
                self._keygen_slots,
                recall_first=again,
            )
        except (Rejected, CeremonyEnded, Unavailable) as error:
            return Ended(await self._end(request_id, self._store.keys.end, error))
        try:
            await self._written(partial(self._keybook.add, request_id, key))
        except CeremonyEnded as error:
            return Ended(await self._end(request_id, self._store.keys.end, error))
        await self._no_more_waiting(request_id)
        self._network.activate_later(set(self._roster.indices) - key.activated)
        return Ended(KeyState.ACTIVE)

    async def signature(
        self,
        signature_id: str,
        client: wire.ClientRequest,
        key_id: str,
        public_key: bytes,
        h: bytes,
        *,
        again: bool,
        resumed: bool = False,
        lacking: str = "",
    ) -> Ended:
        """As `key`: a signature on the 32 bytes `h` under the child key `public_key` (33 bytes). `lacking`: what was
        said of its approvals when they were too few."""
        value: SignatureValue | None = None

        async def attempt(signed: wire.ClientRequest, pending: OnPending, waiting: Waiting | None) -> tuple[str, bytes]:
            request = SigningRequest(
                client=signed, key_id=key_id, on_pending=pending, recall_first=again, patient=resumed, waiting=waiting,
                h=h, public_key=public_key,
            )  # fmt: skip
            nonlocal value
            value = await self._signing.sign(request)
            return SignatureState.SIGNED, msgspec.json.encode(value)

        moves = self._store.signatures
        state = await self._carry_out(
            signature_id, client, moves, attempt, again=again, resumed=resumed, lacking=lacking
        )
        return Ended(state, value)

    async def batch(
        self,
        batch_id: str,
        client: wire.ClientRequest,
        key_id: str,
        items: tuple[Item, ...],
        *,
        again: bool,
        resumed: bool = False,
        lacking: str = "",
    ) -> Ended:
        """As `signature`: every hash of a batch."""

        async def attempt(signed: wire.ClientRequest, pending: OnPending, waiting: Waiting | None) -> tuple[str, bytes]:
            request = BatchRequest(
                client=signed, key_id=key_id, on_pending=pending, recall_first=again, patient=resumed, waiting=waiting,
                items=items,
            )  # fmt: skip
            results = await self._batch_signing.sign(request)
            whole = all(isinstance(result, SignatureValue) for result in results)
            state = BatchState.SIGNED if whole else BatchState.PARTLY_SIGNED
            return state, msgspec.json.encode([_shown(result) for result in results])

        moves = self._store.batches
        return Ended(
            await self._carry_out(batch_id, client, moves, attempt, again=again, resumed=resumed, lacking=lacking)
        )

    async def _carry_out(
        self,
        request_id: str,
        client: wire.ClientRequest,
        moves: Progress,
        attempt: Callable[[wire.ClientRequest, OnPending, Waiting | None], Awaitable[tuple[str, bytes]]],
        *,
        again: bool,
        resumed: bool,
        lacking: str,
    ) -> str:
        """`attempt` it with the approvals that there are, again while more of them come meanwhile. A new one has
        none."""
        waited, pending = again, partial(self._pending, request_id, moves.set_executing)
        waiting = self._waited_before(request_id) if resumed else None
        approved = self._carried(request_id, lacking) if again else ()
        while True:
            signed = client
            if approved:
                signed = msgspec.structs.replace(client, approvals=tuple(one.jws for one in approved))
            try:
                state, result = await attempt(signed, pending, waiting)
                break
            except (Rejected, CeremonyEnded, Unavailable) as error:
                state = await self._end_or_wait(request_id, client, moves, error)
                if state != AWAITING:
                    return state
                waited = True
                # Of what has come meanwhile nobody else thinks.
                before, lacking = approved, str(error.reason) if isinstance(error, Rejected) else ""
                approved = self._carried(request_id, lacking)
                if not brings_more(before, approved, lacking) or not await moves.take_up(request_id):
                    return state
        await self._written(partial(moves.finish, request_id, state, result, waited=waited))
        await self._no_more_waiting(request_id)
        return state

    async def _end_or_wait(
        self,
        request_id: str,
        client: wire.ClientRequest,
        moves: Progress,
        error: Rejected | CeremonyEnded | Unavailable,
    ) -> str:
        """As `_end`; a request that lacks approvals waits for them, unless too many of its client do."""
        if not isinstance(error, Rejected) or error.rule != APPROVALS_RULE:
            return await self._end(request_id, moves.end, error)
        facts = Awaited(request_id, claimed_client(client.jws), claimed_expiry_s(client.jws))
        reason = (error.rule, error.reason, self._network.signers.name(error.signer))
        if await self._written(partial(moves.await_approvals, facts, MAX_AWAITING, *reason)):
            self.refusals.note(request_id, error.signer)
            await self._no_more_waiting(request_id)
            return AWAITING
        too_many = f"{MAX_AWAITING} requests of {facts.client} await approvals already"
        return await self._end(request_id, moves.end, CeremonyEnded(TOO_MANY_AWAIT, too_many))

    def _carried(self, request_id: str, lacking: str) -> tuple[ApprovalRow, ...]:
        """The approvals that would be carried with a request now. Raises `Unavailable`."""
        return carried(self._store.approvals.of(request_id), lacking, time.time())

    async def _pending(
        self, request_id: str, show: Callable[[str, str, str, str], Awaitable[None]], waiting: Waiting
    ) -> None:
        """Some gates need time. What is only told to whoever asks meanwhile, or spares gates a question after a
        restart, may be missing: the result is written in any case."""
        signers = ", ".join(self._network.signers.name(index) for index in sorted(waiting.until_s))
        until = show_time(max(waiting.until_s.values()))
        self._waited.add(request_id)
        with suppress(StoreFailed, QueueFull):
            await self._store.waits.put(request_id, waiting)
            await show(request_id, GATE_PENDING, f"a gate is deciding, and has time until {until}", signers)

    def _waited_before(self, request_id: str) -> Waiting | None:
        """What the last run of this process waited for."""
        waiting = self._store.waits.get(request_id)
        if waiting is not None:
            self._waited.add(request_id)
        return waiting

    async def _no_more_waiting(self, request_id: str) -> None:
        """No gate needs time any more."""
        if request_id in self._waited:
            self._waited.discard(request_id)
            with suppress(StoreFailed, QueueFull):
                await self._store.waits.forget(request_id)

    async def _end(
        self,
        request_id: str,
        end: Callable[[str, str, str, str, str], Awaitable[None]],
        error: Rejected | CeremonyEnded | Unavailable,
    ) -> str:
        """Let a request end of which nothing comes; the state it ends in."""
        name = self._network.signers.name
        if isinstance(error, Rejected):
            state, rest = "Rejected", (error.rule, error.reason, name(error.signer))
        elif isinstance(error, CeremonyEnded):
            state, rest = "Failed", (error.code, error.reason, name(error.signer))
        else:
            state, rest = "Failed", ("unavailable", str(error), "")
        if rest[0] == CONFLICT:
            await self._written(partial(self._store.release, request_id))
        await self._written(partial(end, request_id, state, *rest))
        await self._no_more_waiting(request_id)
        return state

    async def _written(self, write: Callable[[], Awaitable[T]]) -> T:
        """Do `write`, once more whenever a full disk or a full queue has room again: what came of a request is not
        given up. As many wait here as requests are under way.

        Raises `StoreFailed` where only a restart can help.
        """
        while True:
            try:
                return await write()
            except StoreFailed:
                await self._store.recovery.until_it_works()
            except QueueFull:
                await asyncio.sleep(QUEUE_PAUSE_S)


async def _shown_nowhere(request_id: str, code: str, message: str, signers: str) -> None:
    """Requests for keys have one state until they end: the log says why it lasts."""
    log.info("gate-pending", id=request_id, code=code, reason=message, signers=signers)


def _shown(result: ItemResult) -> BatchResult:
    if isinstance(result, SignatureValue):
        return BatchResult(signature=result)
    return BatchResult(reason=Reason(result.code, result.reason))
