"""The composition root of the enclave process: every part is made and joined here, and nowhere else."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from functools import partial

import nacl.bindings

from enclave import __version__
from enclave.asking import Gate
from enclave.attempts import RequestBook
from enclave.audit import AuditLog
from enclave.authorise import Authoriser, SigningRules
from enclave.ceremonies import Ceremonies
from enclave.channels.handshake import Identity, Link, PeerSession
from enclave.channels.links import Links
from enclave.config import EnclaveConfig
from enclave.creation import KeyCreation
from enclave.dispatch import Dispatch
from enclave.effects import Effects
from enclave.errors import CallerError, KeymootError
from enclave.framing import Stream
from enclave.gate import GateKeys
from enclave.gate_secrets import open_gate_secrets
from enclave.hsm import Hsm, HsmThread, open_hsm
from enclave.log import Log
from enclave.members import NonceBook, OwnSession
from enclave.orders import CeremonyOrders, Surroundings
from enclave.pool import PresignaturePool
from enclave.prss_state import PrssState
from enclave.serve import MAX_QUEUED_TO_SIGNER_BYTES, Server
from enclave.shares import Vault
from enclave.tasks import Promise, Timers
from enclave.wire import PROTOCOL_VERSION, Attached, Status
from enclave.worker import MAX_WORKER_MESSAGE_BYTES, fork_worker

HSM_START_TIMEOUT_S = 30.0
HEAD_SIGNING_PERIOD_S = 60.0


def run_enclave(config: EnclaveConfig) -> None:
    """Run until SIGTERM. Forks the presign worker before the PKCS#11 module is loaded."""
    worker = Stream(fork_worker(), MAX_QUEUED_TO_SIGNER_BYTES, MAX_WORKER_MESSAGE_BYTES)
    log = Log("enclave", network=config.file.network, signer=config.file.signer)
    thread = HsmThread(lambda: open_hsm(config.hsm, config.file.network, config.index))
    try:
        thread.wait_ready(HSM_START_TIMEOUT_S)
        EnclaveProcess(config, worker, thread, log).run()
    finally:
        thread.close()
        worker.close()


class EnclaveProcess:
    """All parts of one running enclave."""

    def __init__(self, config: EnclaveConfig, worker: Stream, thread: HsmThread, log: Log) -> None:
        self._config, self._thread, self._log = config, thread, log
        self._timers = Timers(time.monotonic)
        self._effects = Effects()
        self._session = _new_session(config.index)
        self._prss = PrssState(config.index, config.roster.tolerate)
        self._audit = AuditLog(config.roster.network, config.index, time.time)
        self._pool = PresignaturePool()
        self._vault = Vault(config.roster.network, config.index, self._on_hsm, self._effects.store)
        self._ceremonies = Ceremonies(self._timers, self._effects.report)
        around = self._surroundings()
        self._orders = CeremonyOrders(around)
        self._gate = Gate(self._gate_keys(), self._timers, time.time, os.urandom, self._effects.emit)
        rules = SigningRules(
            config.roster, config.policy, config.file.gate.mode, config.file.gate.deadline_s, int(time.time())
        )
        self._authoriser = Authoriser(
            rules,
            self._session,
            self._vault,
            self._pool,
            self._prss,
            self._gate,
            self._audit,
            self._effects,
            self._peer,
            RequestBook(time.time),
            time.time,
            os.urandom,
        )
        creation = KeyCreation(rules, self._authoriser.book, self._orders, self._effects, time.time)
        self._dispatch = Dispatch(
            around,
            self._orders,
            creation,
            self._authoriser,
            self._effects,
            self._timers,
            self._describe,
            self._status,
        )
        uid = config.file.signer_uid
        self._server = Server(
            config.socket,
            os.getuid() if uid is None else uid,
            self._dispatch,
            self._orders,
            self._effects,
            worker,
            self._timers,
            (thread.fileno(), thread.drain),
            log,
        )

    def run(self) -> None:
        """Check that HSM and roster agree, then serve."""
        expected = self._config.roster.signer(self._config.index).identity_point
        if self._hsm_now(lambda hsm: hsm.identity_point) != expected:
            raise CallerError(
                f"the HSM's identity key is not the one the roster lists for {self._config.file.signer}: "
                "check hsm.token_label, hsm.identity_key_label and the roster"
            )
        self._sign_heads()
        self._server.run(lambda: self._log.info("ready", socket=str(self._config.socket), pid=os.getpid()))

    def _surroundings(self) -> Surroundings:
        identity = Identity(
            roster=self._config.roster,
            me=self._config.index,
            boot_nonce=self._session.boot_nonce,
            frame_key=self._session.frame_key,
            prss_epoch=lambda: self._prss.epoch,
            state_version=lambda: self._audit.seq,
            audit_head=lambda: self._audit.head,
        )
        self._links = Links(
            identity,
            os.urandom,
            self._timers,
            time.monotonic,
            self._sign_identity,
            partial(self._send, bulk=False),
            self._on_link,
        )
        return Surroundings(
            roster=self._config.roster,
            session=self._session,
            nonces=NonceBook(self._session, os.urandom),
            links=self._links,
            ceremonies=self._ceremonies,
            vault=self._vault,
            pool=self._pool,
            prss=self._prss,
            audit=self._audit,
            random=os.urandom,
            sign_identity=self._sign_identity,
            send=lambda coordinator, receiver, bulk, data: self._send(coordinator, receiver, data, bulk=bulk),
            report=self._effects.report,
            to_worker=lambda message: self._server.to_worker(message),
        )

    # --- the HSM ---

    def _on_hsm(self, job: Callable[[Hsm], object]) -> Promise[object]:
        promise: Promise[object] = Promise()
        try:
            self._thread.submit(job, promise.settle)
        except KeymootError as error:
            promise.reject(error)
        return promise

    def _hsm_now(self, job: Callable[[Hsm], object]) -> object:
        """Before the loop runs: submit and wait."""
        promise = self._on_hsm(job)
        deadline_s = time.monotonic() + HSM_START_TIMEOUT_S
        while not promise.done and time.monotonic() < deadline_s:
            select.select([self._thread.fileno()], [], [], max(0.0, deadline_s - time.monotonic()))
            self._thread.drain()
        return promise.result()

    def _sign_identity(self, message_digest: bytes) -> Promise[bytes]:
        return self._on_hsm(lambda hsm: hsm.sign(message_digest))  # type: ignore[return-value]

    def _gate_keys(self) -> GateKeys | None:
        config = self._config
        if config.file.gate.mode == "none":
            self._log.warning("no gate", reason="gate.mode is none: this signer agrees to whatever its policy allows")
            return None
        keys = self._hsm_now(
            lambda hsm: open_gate_secrets(hsm, config.roster.network, config.index, config.gate_secrets)
        )
        assert isinstance(keys, GateKeys)
        return keys

    def _sign_heads(self) -> None:
        """Every minute in which the audit chain grew: an entry with the HSM's signature over its head."""
        self._timers.after(HEAD_SIGNING_PERIOD_S, self._sign_heads)
        to_sign, seq, head = self._audit.head_to_sign(), self._audit.seq, self._audit.head
        if to_sign is None:
            return
        promise = self._sign_identity(to_sign)

        def signed() -> None:
            try:
                self._effects.audit(self._audit.record_head(seq, head, promise.result()))
            except KeymootError as error:
                self._log.warning("audit head not signed", reason=str(error))

        promise.on_done(signed)

    # --- the network ---

    def _send(self, coordinator: str, receiver: int, data: bytes, *, bulk: bool) -> None:
        self._effects.to_peer(coordinator, receiver, bulk, data)

    def _on_link(self, coordinator: str, peer: int, link: Link | None, reason: str) -> None:
        self._dispatch.on_link(coordinator, peer, link, reason)
        name = self._config.roster.signer(peer).name
        if link is not None:
            self._log.info("link up", peer=name, coordinator=coordinator)
        else:
            self._log.warning("link down", peer=name, coordinator=coordinator, reason=reason)

    def _peer(self, coordinator: str, index: int) -> PeerSession | None:
        link = self._links.get(coordinator, index)
        return link.peer if link is not None else None

    # --- what is told ---

    def _describe(self) -> Attached:
        roster, me = self._config.roster, self._config.roster.signer(self._config.index)
        return Attached(
            protocol=PROTOCOL_VERSION,
            enclave_version=__version__,
            network=roster.network,
            index=me.index,
            name=me.name,
            fingerprint=me.fingerprint,
            roster_digest=roster.digest(),
            policy_digest=self._config.policy.digest(),
            gate_mode=self._config.file.gate.mode,
            boot_nonce=self._session.boot_nonce,
            prss_epoch=self._prss.epoch,
        )

    def _status(self) -> Status:
        hsm_state, reason = self._thread.state
        state: str = hsm_state
        if state == "ready" and self._prss.epoch == 0:
            state, reason = "waiting", "no PRSS seeds yet: all signers must be online once"
        counters: dict[str, int] = {}
        for part in (self._ceremonies, self._dispatch, self._authoriser, self._gate):
            counters |= part.counters
        gauges = {
            "presignatures": len(self._pool),
            "ceremonies": len(self._ceremonies),
            "requests": len(self._authoriser.book),
            "prss_epoch": self._prss.epoch,
            "audit_seq": self._audit.seq,
        }
        return Status(state, reason[:500], counters, gauges)


def _new_session(index: int) -> OwnSession:
    frame_key, frame_secret = nacl.bindings.crypto_sign_keypair()
    return OwnSession(index, os.urandom(32), frame_key, frame_secret)
