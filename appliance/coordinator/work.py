"""Accepted requests and their execution: on disk before an order goes out, ended on disk before it is shown."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import msgspec
import structlog

from appliance.api.batches import BATCH_ID_PREFIX
from appliance.api.derivation import derive
from appliance.coordinator.batches import batch_items
from appliance.coordinator.carrying import brings_more, carried
from appliance.coordinator.credentials import Admitted
from appliance.coordinator.execution import Ended, Execution
from appliance.coordinator.keybook import CertifiedKey, KeyBook
from appliance.coordinator.limits import MAX_AWAITING
from appliance.coordinator.messages import message_hash
from appliance.coordinator.network import Network
from appliance.coordinator.rates import Limited
from appliance.coordinator.unfinished import client_request, wanted_items, wanted_label, wanted_signature
from appliance.durations import DurationsBy
from appliance.store import CoordinatorStore
from appliance.store.accepted import AWAITING, Accepted
from appliance.store.approvals import ApprovalRow
from appliance.store.batches import BatchRow
from appliance.store.keys import KeyRow
from appliance.store.signatures import SignatureRow
from appliance.telemetry import named
from policies.errors import Unavailable
from policies.requests import HashBatch, KeyCreation, SigningBody
from policies.roster import Roster
from policies.signed_requests import CLOCK_SKEW_S, MAX_LIFETIME_S, claimed_expiry_s

MAX_UNDER_WAY = 4096
MAX_BATCHES_UNDER_WAY = 64
AWAITING_RETRY_S = 60

log = structlog.get_logger()


class Work:
    """Runs every accepted request once, in a task of its own. `fatal` is told of an error that nobody foresaw."""

    def __init__(
        self,
        store: CoordinatorStore,
        roster: Roster,
        network: Network,
        keybook: KeyBook,
        execution: Execution,
        random: Callable[[int], bytes],
        wall_clock: Callable[[], float],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._store, self._roster, self._network = store, roster, network
        self._keybook, self._execution = keybook, execution
        self._random, self._clock, self._fatal = random, wall_clock, fatal
        self._tasks: dict[str, asyncio.Task[Ended]] = {}
        # By kind of request and outcome; how long they took, by kind.
        self.ended: Counter[tuple[str, ...]] = Counter()
        self.seconds = DurationsBy()
        self._batches = 0

    # --- acceptance ---

    async def create_key(self, signed: Admitted, body: KeyCreation) -> tuple[str, bool]:
        """Accept the request for a key. Returns its id, and False where its external id stood for it already; where
        that has failed, it is taken up again.

        Raises `ExternalIdTaken`; `Unavailable` where nothing was accepted.
        """
        self._check_room()
        request = self._accepted("kreq_", signed, body.external_id)
        accepted = await self._store.keys.accept(request, body.label)
        self._log_accepted(accepted.id, "Key", signed, new=accepted.new)
        if accepted.run:
            run = self._execution.key(accepted.id, signed.request, body.label, again=not accepted.new)
            self._start(accepted.id, "Key", run)
        return accepted.id, accepted.new

    async def create_signature(self, signed: Admitted, key: CertifiedKey, body: SigningBody) -> tuple[Accepted, bool]:
        """Accept a signing request under `key`: as it stands in the store if it is new, else its id alone counts.
        Raises as `create_key`; `CallerError` for a path that has no child key, and for typed data that is none."""
        self._check_room()
        acknowledgement = key.acknowledgement
        public_key, _ = derive(acknowledgement.public_key, acknowledgement.chain_code, body.derivation_path)
        # Typed data that has no hash is refused before it is accepted.
        h = message_hash(body)
        request = self._accepted("sig_", signed, body.external_id)
        self._check_place(request, signed)
        key_id, kind = acknowledgement.key_id, type(body).__name__
        accepted = await self._store.signatures.accept(request, key_id, kind, body.derivation_path)
        self._log_accepted(accepted.id, kind, signed, new=accepted.new)
        if accepted.run:
            run = self._execution.signature(accepted.id, signed.request, key_id, public_key, h, again=not accepted.new)
            self._start(accepted.id, kind, run)
        return request if accepted.new else msgspec.structs.replace(request, id=accepted.id), accepted.new

    async def create_batch(self, signed: Admitted, key: CertifiedKey, body: HashBatch) -> tuple[str, bool]:
        """Accept a batch under `key`. Returns and raises as `create_signature`."""
        self._check_room()
        with ExitStack() as place:
            place.enter_context(self._batch_place())
            items = await batch_items(body, key.acknowledgement)
            request = self._accepted(BATCH_ID_PREFIX, signed, body.external_id)
            self._check_place(request, signed)
            key_id = key.acknowledgement.key_id
            accepted = await self._store.batches.accept(request, key_id, len(items))
            self._log_accepted(accepted.id, "HashBatch", signed, new=accepted.new)
            if accepted.run:
                run = self._execution.batch(accepted.id, signed.request, key_id, items, again=not accepted.new)
                self._start(accepted.id, "HashBatch", run, place.pop_all())
        return accepted.id, accepted.new

    async def approve(self, row: SignatureRow | BatchRow, approver: str, jws: str) -> None:
        """Keep an approval; what awaits some is tried again, where this one may help. Raises `Unavailable`."""
        self._check_room()
        with ExitStack() as place:
            if isinstance(row, BatchRow):
                place.enter_context(self._batch_place())
            before = self._store.approvals.of(row.id)
            await self._store.approvals.put(ApprovalRow(row.id, approver, jws, claimed_expiry_s(jws)))
            log.info("request-approved", id=row.id, approver=approver)
            # Not while an attempt is under way: it looks for new approvals when it ends.
            table = self._store.table_of(row)
            now = table.get(row.id)
            if now is None or now.state != AWAITING or not self._is_worth_asking(now, before):
                return
            if await table.take_up(row.id):
                await self._resume(now, place)

    def _is_worth_asking(self, row: SignatureRow | BatchRow, before: Sequence[ApprovalRow]) -> bool:
        both = (before, self._store.approvals.of(row.id))
        known, now = (carried(approvals, row.reason_message, self._clock()) for approvals in both)
        return brings_more(known, now, row.reason_message) or self._execution.refusals.outdated(row.id)

    async def wait(self, request_id: str, timeout_s: float) -> Ended | None:
        """Until the request has ended, or the time is over. None where it is not known here how it ended."""
        task = self._tasks.get(request_id)
        if task is None:
            return None
        await _done(task, timeout_s)
        return task.result() if task.done() and not task.cancelled() and task.exception() is None else None

    def _log_accepted(self, name: str, kind: str, signed: Admitted, *, new: bool) -> None:
        """`request` is what enclaves and their audit chains call it."""
        digest = signed.request.digest(self._roster.network).hex()
        log.info("request-accepted" if new else "request-known", id=name, kind=kind, request=digest)

    def _check_room(self) -> None:
        if len(self._tasks) >= MAX_UNDER_WAY:
            raise Unavailable(f"{MAX_UNDER_WAY} requests are under way", "try again shortly")

    @contextmanager
    def _batch_place(self, *, anyway: bool = False) -> Iterator[None]:
        """A place among the batches that are carried out. Raises `Unavailable` where too many are, unless there is one
        `anyway`."""
        if self._batches >= MAX_BATCHES_UNDER_WAY and not anyway:
            raise Unavailable(f"{MAX_BATCHES_UNDER_WAY} batches are under way", "try again shortly")
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1

    def _check_place(self, request: Accepted, signed: Admitted) -> None:
        """Raises `Limited` for a new request that was signed to wait for approvals, where too many of its client do."""
        signed_for_s = signed.expires_s - self._clock()
        if signed_for_s <= MAX_LIFETIME_S + CLOCK_SKEW_S or self._store.awaiting.of(request.client) < MAX_AWAITING:
            return
        if not self._store.knows(request):
            told = f"{MAX_AWAITING} requests of {request.client} await approvals: have some approved, or let them end"
            raise Limited("too-many-awaiting", told, AWAITING_RETRY_S)

    def _accepted(self, prefix: str, signed: Admitted, external_id: str) -> Accepted:
        client = signed.request
        path = client.path.encode()
        return Accepted(
            id=prefix + self._random(16).hex(),
            external_id=external_id,
            path=client.path,
            body=client.body,
            jws=client.jws,
            created_at_ms=int(self._clock() * 1000),
            digest=hashlib.sha256(len(path).to_bytes(4, "big") + path + client.body).digest(),
            client=signed.client,
        )

    @property
    def under_way(self) -> int:
        """How many requests are carried out now."""
        return len(self._tasks)

    def _start(
        self, request_id: str, kind: str, run: Coroutine[object, object, Ended], place: ExitStack | None = None
    ) -> None:
        """`run` returns how it ended; `place` is held until then."""
        task = asyncio.create_task(run, name=request_id)
        self._tasks[request_id] = task
        if place is not None:
            task.add_done_callback(lambda _: place.close())
        task.add_done_callback(partial(self._ended, request_id, kind, time.perf_counter()))

    def _ended(self, request_id: str, kind: str, started_s: float, task: asyncio.Task[Ended]) -> None:
        # Taken up again, it may run in another task by now.
        if self._tasks.get(request_id) is task:
            del self._tasks[request_id]
        if task.cancelled():
            return
        error = task.exception()
        outcome, took_s = "interrupted" if error is not None else task.result().state, time.perf_counter() - started_s
        self.ended[kind, outcome] += 1
        self.seconds.observe(kind, took_s)
        log.info("request-ended", id=request_id, kind=kind, outcome=outcome, ms=round(took_s * 1000, 1))
        if isinstance(error, Unavailable):
            # It stays unfinished on disk: the next start takes it up or ends it.
            log.error("request-interrupted", request=request_id, reason=str(error))
        elif error is not None:
            self._fatal(error)

    # --- restart and stop ---

    async def resume(self) -> None:
        """Take up what the last run of this process left unfinished: it was accepted, so it ends. What the signers
        answered to it before is recalled first. Raises `Unavailable`."""
        store = self._store
        for key in store.keys.unfinished():
            with named(request_id=key.id):
                await self._resume_key(key)
        rows: list[SignatureRow | BatchRow] = [*store.signatures.unfinished(), *store.batches.unfinished()]
        for row in rows:
            with named(request_id=row.id), ExitStack() as place:
                if isinstance(row, BatchRow):
                    # All of them: they were accepted.
                    place.enter_context(self._batch_place(anyway=True))
                await self._resume(row, place)

    async def _resume_key(self, row: KeyRow) -> None:
        try:
            self._check_room()
            run = self._execution.key(row.id, client_request(row), wanted_label(row), again=True, resumed=True)
            self._start(row.id, "Key", run)
        except Unavailable as error:
            await self._store.keys.end(row.id, "Failed", "restart", str(error), "")

    async def _resume(self, row: SignatureRow | BatchRow, place: ExitStack) -> None:
        """What `place` holds is held until it ends."""
        try:
            self._check_room()
            kind, run = await self._resumed(row)
        except Unavailable as error:
            await self._store.table_of(row).end(row.id, "Failed", "restart", str(error), "")
            return
        self._start(row.id, kind, run, place.pop_all())

    async def _resumed(self, row: SignatureRow | BatchRow) -> tuple[str, Coroutine[object, object, Ended]]:
        """Its kind, and what carries it out. Raises `Damaged`."""
        client, lacking = client_request(row), row.reason_message
        if isinstance(row, BatchRow):
            items = await wanted_items(row, self._keybook)
            return "HashBatch", self._execution.batch(
                row.id, client, row.key_id, items, again=True, resumed=True, lacking=lacking
            )
        wanted = wanted_signature(row, self._keybook)
        return wanted.kind, self._execution.signature(
            row.id, client, row.key_id, wanted.public_key, wanted.h, again=True, resumed=True, lacking=lacking
        )

    async def close(self) -> None:
        """Cancel what is under way; it stays unfinished on disk."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _done(task: asyncio.Task[Ended], timeout_s: float) -> None:
    """Until the task is done, or the time is over."""
    if task.done():
        return
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    task.add_done_callback(wake)
    timer = loop.call_later(timeout_s, wake)
    try:
        await waiter
    finally:
        timer.cancel()
        task.remove_done_callback(wake)
