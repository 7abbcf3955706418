"""The ceremony orders: setup (SPEC 1), key generation (SPEC 2) and presigning (SPEC 3), from order to report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from enclave.audit import AuditLog
from enclave.batch_run import WorkerRun
from enclave.ceremonies import Ceremonies, LocalRun, Ticket, failed_report, report_failed
from enclave.channels.frames import PeerKeys, ceremony_keys
from enclave.channels.handshake import Link, verify_identity
from enclave.channels.links import Links
from enclave.crypto.curve import SECP256K1
from enclave.errors import KeymootError, LinkFault, Refused, Unavailable
from enclave.evidence import CeremonyRecord
from enclave.members import NonceBook, OwnSession, ceremony_context, verify_nonces
from enclave.pool import BatchKey, PresignaturePool
from enclave.protocol import keygen, presign, setup
from enclave.protocol.charges import Rules
from enclave.protocol.keygen_rules import KeygenRules
from enclave.protocol.setup_rules import SetupRules
from enclave.prss_state import PrssState
from enclave.setup_turn import SetupTurn
from enclave.shares import KeyRecord, Vault
from enclave.tasks import Promise
from enclave.wire import (
    MAX_PRESIGNATURES,
    Acknowledgement,
    AuditEntry,
    Kept,
    KeygenOrder,
    KeysAcknowledged,
    KeysActivated,
    PresignDone,
    PresignOrder,
    ReportBody,
    SetupDone,
    SetupOrder,
    SignedAcknowledgement,
    SignedNonce,
    encode,
)
from enclave.worker import Begin, Charged, End, Finished, FromWorker, Incoming, Outgoing
from policies.roster import Roster

FIRST_KEY_EPOCH = 1
MAX_BATCHES_UNDER_WAY = 4
MAX_EPOCH_STEP = 1024


@dataclass(frozen=True)
class Surroundings:
    """What carrying out orders needs of the rest of the enclave. Effects are callables."""

    roster: Roster
    session: OwnSession
    nonces: NonceBook
    setup_turn: SetupTurn
    links: Links
    ceremonies: Ceremonies
    vault: Vault
    pool: PresignaturePool
    prss: PrssState
    audit: AuditLog
    random: Callable[[int], bytes]
    sign_identity: Callable[[bytes], Promise[bytes]]
    send: Callable[[str, int, bool, bytes], None]
    report: Callable[[str, ReportBody, tuple[AuditEntry, ...], Kept | None], None]
    to_worker: Callable[[bytes], None]


class CeremonyOrders:
    """Starts ceremonies. Every `start_…` raises `Refused` or `Unavailable` before anything has changed."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._batches: dict[bytes, WorkerRun] = {}
        self._finished: dict[bytes, WorkerRun] = {}

    # --- SPEC 1 ---

    def start_setup(self, coordinator: str, order: SetupOrder) -> None:
        """PRSS seeds of a new epoch, all `n` signers."""
        # SPEC 1.7
        around = self._around
        around.setup_turn.check(coordinator)
        self._check_epoch(coordinator, order.epoch)
        parameters = [order.epoch.to_bytes(8, "big")]
        run = self._local_run(coordinator, order.ceremony, "setup", parameters, order.nonces, SetupRules())

        async def install(seeds: setup.Seeds) -> None:
            await self._install_seeds(seeds)
            entry = around.audit.record("setup", prss_epoch=order.epoch)
            around.report(coordinator, SetupDone(order.ceremony, order.epoch), (entry,), None)

        async def routine() -> setup.Seeds:
            t, roster_digest = around.roster.tolerate, around.roster.digest()
            try:
                return await setup.setup(run.session, t, order.epoch, roster_digest, around.random, install)
            finally:
                around.setup_turn.release(coordinator)

        run.start(routine(), lambda _: None)

    def _check_epoch(self, coordinator: str, epoch: int) -> None:
        """A later epoch than ours, but not so late that a hostile coordinator could use all of them up."""
        around = self._around
        if around.ceremonies.running("setup"):
            raise Refused("busy", "a setup is under way")
        if epoch <= around.prss.epoch:
            raise Refused("epoch", f"PRSS epoch {epoch} is not after {around.prss.epoch}")
        peers = (around.links.get(coordinator, j) for j in around.roster.indices)
        highest = max([around.prss.epoch, *(link.peer.prss_epoch for link in peers if link is not None)])
        if epoch > highest + MAX_EPOCH_STEP:
            raise Refused("epoch", f"PRSS epoch {epoch} is more than {MAX_EPOCH_STEP} after {highest}")

    async def _install_seeds(self, seeds: setup.Seeds) -> None:
        # SPEC 1.6: stored, then in one step in force and everything of older epochs gone; acknowledged only then.
        around = self._around
        await around.vault.keep_seeds(seeds)
        around.prss.install(seeds)
        around.pool.drop(lambda *_: True)
        for run in list(self._batches.values()):
            run.stop(KeymootError("a new PRSS epoch"))

    # --- SPEC 2 ---

    def start_keygen(
        self,
        coordinator: str,
        order: KeygenOrder,
        labels: Sequence[str],
        name: Kept | None,
        answered: Callable[[KeysAcknowledged | KeysActivated], None],
        ended: Callable[[], None],
    ) -> None:
        """One key for each label; the requests behind them are verified. `answered` is called once shares are stored
        and again when the keys are active, `ended` when the ceremony is over, however. `name`: under which the answers
        are kept (SPEC 4.10)."""
        around = self._around
        roster = around.roster
        digests = [request.digest(roster.network) for request in order.requests]
        # Each request with the label that it asks for, so that evidence shows both.
        wanted = [digest + label.encode() for digest, label in zip(digests, labels, strict=True)]
        parameters = [FIRST_KEY_EPOCH.to_bytes(8, "big"), *wanted]
        plan = keygen.KeyPlan(roster.network, roster.digest(), roster.tolerate, FIRST_KEY_EPOCH, tuple(labels))
        rules = KeygenRules(plan, self._acknowledgement_verifies)
        run = self._local_run(coordinator, order.ceremony, "keygen", parameters, order.nonces, rules)

        async def routine() -> tuple[keygen.Certificate, ...]:
            new: list[keygen.NewKey] = []

            async def store_pending(keys: Sequence[keygen.NewKey]) -> tuple[SignedAcknowledgement, ...]:
                new.extend(keys)
                signed = await self._store_pending(keys)
                entries = tuple(
                    around.audit.record("key-pending", key_id=key.acknowledgement.key_id, request=digest.hex())
                    for key, digest in zip(keys, digests, strict=True)
                )
                report = KeysAcknowledged(order.ceremony, signed)
                answered(report)
                around.report(coordinator, report, entries, name)
                return signed

            try:
                certificates = await keygen.keygen(
                    run.session, SECP256K1, plan, around.random, store_pending, self._acknowledgement_verifies
                )
                await around.vault.keep_keys([_record(key, active=True) for key in new])
            finally:
                ended()
            return certificates

        def activated(certificates: tuple[keygen.Certificate, ...]) -> None:
            answered(self._report_activated(coordinator, order.ceremony, certificates, name))

        run.start(routine(), activated)

    async def _store_pending(self, keys: Sequence[keygen.NewKey]) -> tuple[SignedAcknowledgement, ...]:
        # SPEC 2.6: stored first, acknowledged second.
        await self._around.vault.keep_keys([_record(key, active=False) for key in keys])
        return tuple(
            [
                SignedAcknowledgement(
                    key.acknowledgement, await self._around.sign_identity(key.acknowledgement.digest())
                )
                for key in keys
            ]
        )

    async def activate(
        self,
        coordinator: str,
        ceremony: bytes,
        record: KeyRecord,
        certificate: tuple[SignedAcknowledgement, ...],
    ) -> None:
        """SPEC 2.7: activate a pending key by its relayed certificate. Raises `Refused`."""
        self.verify_certificate(record, certificate)
        if not record.active:
            acknowledgement = record.acknowledgement
            await self._around.vault.keep_keys([KeyRecord(acknowledgement, True, record.share)])
        self._report_activated(coordinator, ceremony, (certificate,))

    def verify_certificate(self, record: KeyRecord, certificate: tuple[SignedAcknowledgement, ...]) -> None:
        """SPEC 2.7: all n signers acknowledged the very key of `record`. Raises `Refused`."""
        own = encode(_without_index(record.acknowledgement))
        if tuple(signed.acknowledgement.index for signed in certificate) != self._around.roster.indices:
            raise Refused("certificate", "one acknowledgement of each signer, in order")
        for signed in certificate:
            if encode(_without_index(signed.acknowledgement)) != own:
                raise Refused("certificate", "acknowledgements of different keys")
            if not self._acknowledgement_verifies(signed):
                raise Refused("certificate", f"signer {signed.acknowledgement.index} did not sign its acknowledgement")

    def _report_activated(
        self,
        coordinator: str,
        ceremony: bytes,
        certificates: tuple[keygen.Certificate, ...],
        name: Kept | None = None,
    ) -> KeysActivated:
        entries = tuple(
            self._around.audit.record(
                "key-active",
                key_id=certificate[0].acknowledgement.key_id,
                label=certificate[0].acknowledgement.label,
                public_key=certificate[0].acknowledgement.public_key.hex(),
            )
            for certificate in certificates
        )
        report = KeysActivated(ceremony, certificates)
        self._around.report(coordinator, report, entries, name)
        return report

    def _acknowledgement_verifies(self, signed: SignedAcknowledgement) -> bool:
        point = self._around.roster.signer(signed.acknowledgement.index).identity_point
        return verify_identity(point, signed.acknowledgement.digest(), signed.signature)

    # --- SPEC 3 ---

    def start_presign(self, coordinator: str, order: PresignOrder) -> None:
        """A batch of presignatures, computed in the worker."""
        around = self._around
        if not around.roster.is_committee(order.committee) or around.session.index not in order.committee:
            raise Refused("committee", "not a committee of 2t + 1 signers with this one among them")
        self._check_share(coordinator, order.count)
        if around.prss.epoch == 0:
            raise Unavailable("no PRSS seeds yet", "all signers must be online once, for the setup")
        # SPEC 3.1
        parameters = [around.prss.epoch.to_bytes(8, "big"), around.prss.context, order.count.to_bytes(4, "big")]
        ticket, keys, links = self._open_ceremony(
            coordinator, order.ceremony, "presign", order.committee, parameters, order.nonces
        )
        boots = {j: link.peer.boot_nonce for j, link in links.items()}
        batch_key = BatchKey(coordinator, order.committee, around.prss.epoch, boots)
        subset_seeds, pair_seeds = around.prss.sub_seeds(order.committee, ticket.context)
        run = WorkerRun(self, ticket, batch_key, order.count)
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
            del self._batches[message.sid]
            self._insert(run, message)
        elif isinstance(message, Charged):
            run.take_charge(message)
        else:
            self._batches.pop(message.sid, None)
            self._finished.pop(message.sid, None)
            self._around.ceremonies.fail(run.ticket, report_failed(run.ticket, message), run.charges)

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
        done = PresignDone(ticket.ceremony, finished.sid, key.committee, count)
        around.report(ticket.coordinator, done, (entry,), None)

    def give_up_batch(self, run: WorkerRun, error: KeymootError) -> None:
        """Stop a batch in the worker. After a time-out its answer says whom it was waiting for."""
        if self._finished.pop(run.ticket.context, None) is not None:
            self._around.ceremonies.forget(run.ticket.context)
            self._end_in_worker(run.ticket.context, str(error))
        elif run.ticket.context in self._batches:
            self._end_in_worker(run.ticket.context, str(error))
            if isinstance(error, LinkFault):
                del self._batches[run.ticket.context]
                self._around.ceremonies.fail(run.ticket, failed_report(run.ticket, error, ()))

    def _end_in_worker(self, sid: bytes, reason: str) -> None:
        self._around.to_worker(encode(End(sid, reason[:500])))

    def give_up(self, error: KeymootError) -> None:
        """Stop every batch in the worker, done ones too: nobody awaits them any more."""
        for run in [*self._batches.values(), *self._finished.values()]:
            run.stop(error)

    def forward(self, sid: bytes, sender: int, frame: bytes) -> None:
        """Hand a frame of a batch to the worker."""
        self._around.to_worker(encode(Incoming(sid, sender, frame)))

    # --- common to all ceremonies ---

    def _local_run(
        self,
        coordinator: str,
        ceremony: bytes,
        kind: str,
        parameters: Sequence[bytes],
        nonces: Sequence[SignedNonce],
        rules: Rules,
    ) -> LocalRun:
        around = self._around
        members = around.roster.indices
        ticket, keys, _ = self._open_ceremony(coordinator, ceremony, kind, members, parameters, nonces)
        run = LocalRun(
            around.ceremonies,
            ticket,
            around.session.index,
            around.session.frame_secret,
            keys,
            around.roster.tolerate,
            rules,
            lambda receiver, frame: around.send(coordinator, receiver, False, frame),
        )
        around.ceremonies.add(run)
        return run

    def _open_ceremony(
        self,
        coordinator: str,
        ceremony: bytes,
        kind: str,
        members: tuple[int, ...],
        parameters: Sequence[bytes],
        nonces: Sequence[SignedNonce],
    ) -> tuple[Ticket, list[PeerKeys], dict[int, Link]]:
        """SPEC 0.2, 0.4: verify the nonces, spend ours, derive the context and every peer's keys."""
        around, me = self._around, self._around.session
        around.ceremonies.check_room(coordinator)
        links: dict[int, Link] = {}
        for j in members:
            if j != me.index:
                link = around.links.get(coordinator, j)
                if link is None:
                    raise Unavailable(f"no link with signer {j} through {coordinator}", "try again shortly")
                links[j] = link
        verify_nonces(nonces, members, kind, me.index, {j: link.peer for j, link in links.items()})
        around.nonces.spend(coordinator, nonces[members.index(me.index)], kind)
        sessions = {j: link.peer.digest() for j, link in links.items()} | {me.index: me.digest()}
        context = ceremony_context(kind, around.roster.digest(), parameters, nonces, sessions)
        keys = [ceremony_keys(link.key, context, me.index, j, link.peer.frame_key) for j, link in links.items()]
        proofs = {j: link.proofs[0] for j, link in links.items()}
        # Our own of any of these handshakes: all show the frame key of this boot.
        proofs[me.index] = next(iter(links.values())).proofs[-1]
        shown = tuple(proofs[j] for j in members)
        record = CeremonyRecord(kind, around.roster.digest(), tuple(parameters), tuple(nonces), shown)
        return Ticket(coordinator, ceremony, kind, context, members, record), keys, links


def _record(key: keygen.NewKey, active: bool) -> KeyRecord:
    return KeyRecord(key.acknowledgement, active, key.share.to_bytes(32, "big"))


def _without_index(acknowledgement: Acknowledgement) -> Acknowledgement:
    return msgspec.structs.replace(acknowledgement, index=1)
