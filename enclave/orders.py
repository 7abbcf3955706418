"""The orders of all `n` signers' ceremonies: setup (SPEC 1) and key generation (SPEC 2), from order to report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from enclave.batches import Batches
from enclave.ceremonies import LocalRun
from enclave.channels.handshake import verify_identity
from enclave.crypto.curve import SECP256K1
from enclave.errors import KeymootError, Refused
from enclave.opening import Surroundings, open_ceremony
from enclave.protocol import keygen, setup
from enclave.protocol.charges import Rules
from enclave.protocol.keygen_rules import KeygenRules
from enclave.protocol.setup_rules import SetupRules
from enclave.shares import KeyRecord
from enclave.wire import (
    Acknowledgement,
    Kept,
    KeygenOrder,
    KeysAcknowledged,
    KeysActivated,
    SetupDone,
    SetupOrder,
    SignedAcknowledgement,
    SignedNonce,
    encode,
)

FIRST_KEY_EPOCH = 1
MAX_EPOCH_STEP = 1024


class CeremonyOrders:
    """Starts ceremonies. Every `start_…` raises `Refused` or `Unavailable` before anything has changed."""

    def __init__(self, around: Surroundings, batches: Batches) -> None:
        self._around, self._batches = around, batches

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
        self._batches.stop_unfinished(KeymootError("a new PRSS epoch"))

    # --- SPEC 2 ---

    def start_keygen(
        self,
        coordinator: str,
        order: KeygenOrder,
        labels: Sequence[str],
        name: Kept | None,
        permitted: Callable[[], None],
        answered: Callable[[KeysAcknowledged | KeysActivated], None],
        ended: Callable[[], None],
    ) -> None:
        """One key for each label; the requests behind them are verified. `permitted()` is asked again before the shares
        are stored, and raises `Refused`. `answered` is called once shares are stored
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
                permitted()
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
        ticket, keys, _ = open_ceremony(around, coordinator, ceremony, kind, members, parameters, nonces)
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


def _record(key: keygen.NewKey, active: bool) -> KeyRecord:
    return KeyRecord(key.acknowledgement, active, key.share.to_bytes(32, "big"))


def _without_index(acknowledgement: Acknowledgement) -> Acknowledgement:
    return msgspec.structs.replace(acknowledgement, index=1)
