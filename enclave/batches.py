"""The batches of presignatures (SPEC 3), from order to report: computed in the worker, kept in the pool."""

from __future__ import annotations

from collections.abc import Callable

from enclave.batch_run import WorkerRun
from enclave.ceremonies import failed_report, report_failed
from enclave.errors import KeymootError, LinkFault, Refused, Unavailable
from enclave.log import Log
from enclave.opening import Surroundings, open_ceremony
from enclave.pool import BatchKey
from enclave.protocol import presign
from enclave.wire import MAX_PRESIGNATURES, PresignDone, PresignOrder, encode
from enclave.worker import Begin, Charged, End, Failed, Finished, FromWorker, Incoming, Inquiring, Outgoing

MAX_BATCHES_UNDER_WAY = 4
# How long the worker may take to answer for a batch that was given up; it may be busy with others.
ANSWER_S = 60.0


class Batches:
    """Those under way in the worker, and those done there and still answered for. `start` raises `Refused` or
    `Unavailable` before anything has changed. `clock`: monotonic seconds."""

    def __init__(self, around: Surroundings, log: Log, clock: Callable[[], float]) -> None:
        self._around, self._log, self._clock = around, log, clock
        self._batches: dict[bytes, WorkerRun] = {}
        self._finished: dict[bytes, WorkerRun] = {}

    def start(self, coordinator: str, order: PresignOrder) -> None:
        """A batch of presignatures, computed in the worker."""
        around = self._around
        if not around.roster.is_committee(order.committee) or around.session.index not in order.committee:
            raise Refused("committee", "not a committee of 2t + 1 signers with this one among them")
        self._check_share(coordinator, order.count)
        if around.prss.epoch == 0:
            raise Unavailable("no PRSS seeds yet", "all signers must be online once, for the setup")
        # SPEC 3.1
        parameters = [around.prss.epoch.to_bytes(8, "big"), around.prss.context, order.count.to_bytes(4, "big")]
        ticket, keys, links = open_ceremony(
            around, coordinator, order.ceremony, "presign", order.committee, parameters, order.nonces
        )
        boots = {j: link.peer.boot_nonce for j, link in links.items()}
        batch_key = BatchKey(coordinator, order.committee, around.prss.epoch, boots)
        subset_seeds, pair_seeds = around.prss.sub_seeds(order.committee, ticket.context)
        run = WorkerRun(self, ticket, batch_key, order.count, self._clock())
        around.ceremonies.add(run)
        self._batches[ticket.context] = run
        begin = Begin(
            sid=ticket.context,
            me=around.session.index,
            committee=order.committee,
            tolerate=around.roster.tolerate,
            count=order.count,
            frame_secret=around.session.frame_secret,
            peers=tuple(keys),
            subset_seeds=subset_seeds,
            pair_seeds=pair_seeds,
        )
        around.to_worker(encode(begin))

    def _check_share(self, coordinator: str, count: int) -> None:
        """Room for a batch, of which each coordinator has its share: none keeps another from presigning."""
        around, sharers = self._around, max(1, self._around.links.coordinators)
        own = sum(run.ticket.coordinator == coordinator for run in self._batches.values())
        most = max(1, MAX_BATCHES_UNDER_WAY // sharers)
        if own >= most or len(self._batches) >= MAX_BATCHES_UNDER_WAY:
            raise Refused("busy", f"{most} batches of {coordinator} are under way")
        around.pool.check_room(count)
        held, share = around.pool.held_for(coordinator), MAX_PRESIGNATURES // sharers
        if held + count > share:
            raise Refused(
                "pool", f"{coordinator} has {held} of the {share} that each of {sharers} coordinators may have"
            )

    def on_worker(self, message: FromWorker) -> None:
        """A message of the presign worker."""
        run = self._batches.get(message.sid) or self._finished.get(message.sid)
        if run is None:
            return
        if isinstance(message, Outgoing):
            self._around.send(run.ticket.coordinator, message.receiver, True, message.frame)
        elif isinstance(message, Finished):
            # One that was given up meanwhile is nobody's: the worker's answer to that follows.
            if run.given_up is None:
                del self._batches[message.sid]
                self._insert(run, message)
        elif isinstance(message, Inquiring):
            self._around.ceremonies.inquire(message.sid)
        elif isinstance(message, Charged):
            run.take_charge(message)
        else:
            self._answered(run, message)

    def _answered(self, run: WorkerRun, message: Failed) -> None:
        """The worker has ended a batch: by itself, or because it was given up."""
        ticket = run.ticket
        finished = self._finished.pop(ticket.context, None) is not None
        self._batches.pop(ticket.context, None)
        verdict = bool(message.culprits or message.group)
        if finished and not verdict and (run.given_up is not None or message.kind != "peer"):
            self._around.ceremonies.forget(ticket.context)
        elif isinstance(run.given_up, LinkFault) and not verdict:
            self._around.ceremonies.fail(ticket, failed_report(ticket, run.given_up, ()))
        else:
            self._around.ceremonies.fail(ticket, report_failed(ticket, message), run.charges)

    def _insert(self, run: WorkerRun, finished: Finished) -> None:
        # SPEC 3.9: a batch of another epoch, or with a member that has rebooted since, is worthless.
        around, ticket, key = self._around, run.ticket, run.batch_key
        try:
            if key.prss_epoch != around.prss.epoch:
                raise Refused("epoch", "a new PRSS epoch came while the batch was made")
            around.pool.insert(finished.sid, key, finished.inverse_shares, finished.points)
        except Refused as refusal:
            around.ceremonies.fail(ticket, failed_report(ticket, refusal, ()))
            self._end_in_worker(ticket.context, str(refusal))
            return
        self._finished[ticket.context] = run
        around.ceremonies.done(ticket, len(presign.ROUNDS))
        count = len(finished.inverse_shares) // 32
        entry = around.audit.record("presign", sid=finished.sid.hex(), count=count)
        # From the order to the pool: what the protocol took, as far as it is seen here.
        took_ms = round((self._clock() - run.started_s) * 1000, 1)
        committee = "-".join(map(str, key.committee))
        self._log.info("presigned", coordinator=ticket.coordinator, committee=committee, count=count, ms=took_ms)
        done = PresignDone(ticket.ceremony, finished.sid, key.committee, count)
        around.report(ticket.coordinator, done, (entry,), None)

    def give_up_batch(self, run: WorkerRun, error: KeymootError) -> None:
        """Stop a batch in the worker. Its answer says whom it was waiting for, or whom it can convict: a cheater that
        breaks its link does not get away from what the others hold (SPEC 0.10)."""
        context = run.ticket.context
        if context not in self._batches and context not in self._finished:
            return
        if run.given_up is None:
            run.given_up = error
            self._end_in_worker(context, str(error))
            self._around.timers.after(ANSWER_S, lambda: self._unanswered(run, error))
        elif context in self._finished and not isinstance(error, LinkFault):
            self._unanswered(run, error)

    def _unanswered(self, run: WorkerRun, error: KeymootError) -> None:
        """Wait for the worker no longer."""
        ticket = run.ticket
        if self._finished.pop(ticket.context, None) is not None:
            self._around.ceremonies.forget(ticket.context)
        elif self._batches.pop(ticket.context, None) is not None:
            self._around.ceremonies.fail(ticket, failed_report(ticket, error, ()))

    def _end_in_worker(self, sid: bytes, reason: str) -> None:
        self._around.to_worker(encode(End(sid, reason[:500])))

    def stop_unfinished(self, error: KeymootError) -> None:
        """Stop every batch that is not done."""
        for run in list(self._batches.values()):
            run.stop(error)

    def give_up(self, error: KeymootError) -> None:
        """Stop every batch in the worker, done ones too: nobody awaits them any more."""
        for run in [*self._batches.values(), *self._finished.values()]:
            run.stop(error)

    def forward(self, sid: bytes, sender: int, frame: bytes) -> None:
        """Hand a frame of a batch to the worker."""
        self._around.to_worker(encode(Incoming(sid, sender, frame)))
