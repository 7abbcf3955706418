"""All parts of one enclave, made and joined here and nowhere else. No I/O: `run.py` gives it sockets and an HSM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nacl.bindings

from enclave import __version__
from enclave.anomalies import AnomalyWatch
from enclave.asking import Gate
from enclave.audit import AuditLog
from enclave.authorise import Authoriser
from enclave.batches import Batches
from enclave.ceremonies import Ceremonies
from enclave.channels.handshake import Identity, Link, PeerSession
from enclave.channels.links import Links
from enclave.config import EnclaveConfig
from enclave.counting import Counting
from enclave.counting_clock import CountingClock
from enclave.creation import KeyCreation
from enclave.dispatch import Dispatch
from enclave.effects import Effects
from enclave.errors import KeymootError, Refused
from enclave.freezes import Freezes, FreezeState, FreezeStore
from enclave.gate_keys import GateKeys
from enclave.hsm import Hsm
from enclave.ledger import Ledger
from enclave.ledger_keeping import LedgerKeeping
from enclave.log import Log
from enclave.members import NonceBook, OwnSession
from enclave.online import Holdings
from enclave.opening import Surroundings
from enclave.orders import CeremonyOrders
from enclave.peer_clocks import PeerClocks
from enclave.pool import PresignaturePool
from enclave.prss_state import PrssState
from enclave.recall import Recall
from enclave.reload import Reload, SigningRules
from enclave.request_book import RequestBook
from enclave.request_log import RequestLog
from enclave.setup_turn import SetupTurn
from enclave.shares import Vault
from enclave.standing import PERIOD_S, Standing
from enclave.tasks import Promise, Timers
from enclave.verdicts import Verdicts
from enclave.wire import PROTOCOL_VERSION, Attached, Status, StopOrders, Stopped
from policies.acceptance import AcceptedState
from policies.repeats import Repeats

MAX_UNTOLD = 16
LINK_STATES = ("up", "opening", "down")


@dataclass(frozen=True)
class Outside:
    """What the world gives an enclave: clocks, randomness, the HSM, the worker, the log.

    `told_of_hsm()`: counters and durations of the HSM, and `queues()`: what waits, both for `Status`. `accepted()`: the
    states of peers that its operator has accepted. `freezes`: where the enclave keeps what it is frozen for. `reload()`
    reads the configuration again, and raises `CallerError`. `requests_after_s`: Unix time before which no request is
    taken, in case the clock was set back. `unkept_freezes`: see `Freezes`. `counting_clock`: one for the life of the
    process; None makes one of the two clocks. `slewed`: see `PeerClocks`.
    """

    wall_clock: Callable[[], float]
    clock: Callable[[], float]
    random: Callable[[int], bytes]
    on_hsm: Callable[[Callable[[Hsm], object]], Promise[object]]
    hsm_state: Callable[[], tuple[str, str]]
    to_worker: Callable[[bytes], None]
    accepted: Callable[[], Sequence[AcceptedState]]
    log: Log
    freezes: FreezeStore
    reload: Callable[[], EnclaveConfig]
    told_of_hsm: Callable[[], tuple[dict[str, int], dict[str, tuple[int, ...]]]] = lambda: ({}, {})
    queues: Callable[[], dict[str, int]] = dict
    requests_after_s: int = 0
    unkept_freezes: FreezeState | None = None
    counting_clock: CountingClock | None = None
    slewed: Callable[[], float] = lambda: 0.0


class EnclaveCore:
    """Every part of one enclave. `dispatch` takes the signer's messages, `batches.on_worker` the worker's."""

    def __init__(self, config: EnclaveConfig, gate_keys: Callable[[], GateKeys | None], outside: Outside) -> None:
        """`gate_keys()`: None in gate mode `none`, and until the HSM has unsealed them."""
        self._config, self._outside = config, outside
        self._untold: list[tuple[str, dict[str, str | int]]] = []
        self.timers = Timers(outside.clock)
        self._repeats = Repeats(outside.clock)
        self.effects = Effects()
        self.pool = PresignaturePool()
        self._session = _new_session(config.index, outside.random)
        self._prss = PrssState(config.index, config.roster.tolerate)
        self._audit = AuditLog(config.roster.network, config.index, outside.wall_clock)
        self._verdicts = Verdicts(self._audit, self.effects.report, self.effects.emit)
        self._ceremonies = Ceremonies(self.timers, self.effects.report, self._verdicts)
        self._standing = Standing(
            config.roster,
            self._audit,
            self.effects,
            self.timers,
            self._sign_identity,
            outside.accepted,
            outside.log,
        )
        self._clock = outside.counting_clock or CountingClock(outside.wall_clock, outside.clock)
        self._peer_clocks = PeerClocks(
            config.roster,
            outside.wall_clock,
            self._clock.elapsed_s,
            outside.slewed,
            lambda peers_s: self._counting.keeping.on_peers(peers_s),
        )
        self._links = self._make_links()
        around = self._surroundings()
        self._standing.start(self._links, around.vault)
        self.timers.after(PERIOD_S, self._each_minute)
        self.batches = Batches(around, outside.log, outside.clock)
        self.orders = CeremonyOrders(around, self.batches)
        self._gate = Gate(
            config.file.gate.mode, gate_keys, self.timers, outside.wall_clock, outside.random, self.effects.emit
        )
        rules = SigningRules(
            config.roster,
            config.policy,
            config.file.gate.mode,
            config.file.gate.deadline_s,
            max(int(outside.wall_clock()), outside.requests_after_s),
            config.file.gate.key_creation,
        )
        self._freezes = freezes = Freezes(
            config.roster.network,
            config.file.signer,
            lambda: rules.policy.operators,
            outside.freezes,
            outside.wall_clock,
            self._tell,
            outside.unkept_freezes,
        )
        self.reload = Reload(config, rules, freezes, outside.reload, outside.wall_clock, self._tell)
        book, log = RequestBook(outside.wall_clock), RequestLog(outside.log, outside.clock)
        self._counting = self._make_counting(rules, around.vault, log)
        self._authoriser = Authoriser(
            rules,
            Holdings(self._session, around.vault, self.pool, self._prss, self._peer, self._pause),
            self._gate,
            self._audit,
            self.effects,
            book,
            outside.wall_clock,
            outside.random,
            log,
            self._counting,
        )
        self._creation = creation = KeyCreation(
            rules,
            book,
            self.orders,
            self.effects,
            outside.wall_clock,
            log,
            freezes,
            self._gate,
            config.index,
            self._audit,
        )
        self.dispatch = Dispatch(
            around,
            self.orders,
            self.batches,
            creation,
            self._authoriser,
            Recall(rules, book, self.effects, outside.wall_clock),
            self.effects,
            self.timers,
            self._standing,
            self._counting.keeping,
            self._describe,
            self.status,
            self._stop,
            self._begin,
        )

    def drop(self, doubt: KeymootError) -> int:
        """Destroy what must be used once, here and in the worker; how many presignatures that cost."""
        self.batches.give_up(doubt)
        return self.pool.drop(lambda *_: True)

    @property
    def unkept_freezes(self) -> FreezeState | None:
        """What is frozen, where it could not be written: for the core that comes after this one."""
        return self._freezes.unkept

    def _make_links(self) -> Links:
        identity = Identity(
            roster=self._config.roster,
            me=self._config.index,
            boot_nonce=self._session.boot_nonce,
            frame_key=self._session.frame_key,
            prss_epoch=lambda: self._prss.epoch,
            chain=lambda: self._audit.stored,
            boot_chain=lambda: self._audit.at_boot,
            wall=self._outside.wall_clock,
            elapsed=self._clock.elapsed_s,
        )
        return Links(
            identity,
            self._outside.random,
            self.timers,
            self._outside.clock,
            self._standing.book,
            self._sign_identity,
            lambda coordinator, peer, data: self.effects.to_peer(coordinator, peer, False, data),
            self._on_link,
            self._on_failed_attempt,
        )

    def _surroundings(self) -> Surroundings:
        network = self._config.roster.network
        return Surroundings(
            roster=self._config.roster,
            session=self._session,
            nonces=NonceBook(self._session, self._outside.random),
            setup_turn=SetupTurn(self._outside.clock),
            links=self._links,
            ceremonies=self._ceremonies,
            timers=self.timers,
            vault=Vault(network, self._config.index, self._outside.on_hsm, self._outside.hsm_state, self.effects.store),
            pool=self.pool,
            prss=self._prss,
            audit=self._audit,
            random=self._outside.random,
            sign_identity=self._sign_identity,
            send=self.effects.to_peer,
            report=self.effects.report,
            to_worker=self._outside.to_worker,
        )

    def _make_counting(self, rules: SigningRules, vault: Vault, log: RequestLog) -> Counting:
        outside = self._outside
        ledger = Ledger(self._clock, outside.wall_clock)
        keeping = LedgerKeeping(
            ledger,
            self._audit,
            vault,
            self.effects,
            self.timers,
            outside.log,
            lambda: rules.policy.counts,
            self._peer_clocks,
        )
        watch = AnomalyWatch(outside.clock, outside.log)
        self._gate.timed = watch.on_gate
        return Counting(
            rules,
            self._freezes,
            ledger,
            keeping,
            watch,
            outside.wall_clock,
            log,
            self._standing.tell_soon,
            self._peer_clocks.wall_doubt,
        )

    def _sign_identity(self, message_digest: bytes) -> Promise[bytes]:
        return self._outside.on_hsm(lambda hsm: hsm.sign(message_digest))  # type: ignore[return-value]

    def _on_link(self, coordinator: str, peer: int, link: Link | None, reason: str) -> None:
        self._peer_clocks.on_link(coordinator, peer, link.peer.clock_s if link is not None else None)
        self.dispatch.on_link(coordinator, peer, link, reason)
        name = self._config.roster.signer(peer).name
        if link is not None:
            self._repeats.over(f"no link with {name} through {coordinator}")
            self._outside.log.info("link up", peer=name, coordinator=coordinator)
        else:
            self._outside.log.warning("link down", peer=name, coordinator=coordinator, reason=reason)

    def _each_minute(self) -> None:
        self.timers.after(PERIOD_S, self._each_minute)
        if self._peer_clocks.outdated():
            self._outside.log.info("links are made anew", reason="this machine's clocks were slewed")
            self._links.renew()

    def _on_failed_attempt(self, coordinator: str, peer: int, reason: str) -> None:
        self.dispatch.on_failed_attempt(coordinator, peer, reason)
        name = self._config.roster.signer(peer).name
        retries = self._repeats.due(f"no link with {name} through {coordinator}", reason)
        if retries is not None:
            self._outside.log.warning("no link", peer=name, coordinator=coordinator, reason=reason, retries=retries)

    def _peer(self, coordinator: str, index: int) -> PeerSession | None:
        link = self._links.get(coordinator, index)
        return link.peer if link is not None else None

    def _pause(self) -> Promise[None]:
        """Resolves once the loop has been around."""
        return self.timers.sleep(0.0)

    # --- what operators say ---

    def _stop(self, message: StopOrders) -> Stopped:
        refused = ""
        try:
            self._freezes.carry_out(message.signatures)
        except Refused as refusal:
            refused = str(refusal)[:500]
            self._outside.log.warning("stop order refused", reason=refused)
        return Stopped(message.ticket, refused, self._freezes.serial, self._freezes.in_force)

    def _begin(self, chain_length: int) -> None:
        """The audit chain can be written to, and had that many entries."""
        untold, self._untold = self._untold, []
        for event, facts in untold:
            self._tell_audit(event, facts)
        self._freezes.begin(chain_length)

    def _tell(self, event: str, facts: dict[str, str | int]) -> None:
        """What operators did, or should know: to the log, and to the audit chain as soon as there is one."""
        log = self._outside.log
        (log.info if event == "policy-reloaded" else log.warning)(event, **facts)
        self._tell_audit(event, facts)

    def _tell_audit(self, event: str, facts: dict[str, str | int]) -> None:
        if self._audit.adopted:
            self.effects.audit(self._audit.record(event, **facts))
        elif len(self._untold) < MAX_UNTOLD:
            self._untold.append((event, facts))

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
            policy_digest=self.reload.told().digest,
            gate_mode=self._config.file.gate.mode,
            boot_nonce=self._session.boot_nonce,
            prss_epoch=self._prss.epoch,
        )

    def status(self) -> Status:
        """The state with its reason, counters and present values."""
        state, reason = self._outside.hsm_state()
        if state == "ready" and self._prss.epoch == 0:
            state, reason = "waiting", "no PRSS seeds yet: all signers must be online once"
        counters, durations = self._outside.told_of_hsm()
        for part in (
            self._ceremonies,
            self._verdicts,
            self.dispatch,
            self._authoriser,
            self._gate,
            self._creation,
            self._standing,
            self._freezes,
            self.reload,
            self._counting.watch,
        ):
            for name, count in part.counters.items():
                counters[name] = counters.get(name, 0) + count
        durations["gate"] = self._gate.seconds.told()
        gauges = {
            "presignatures": len(self.pool),
            "ceremonies": len(self._ceremonies),
            "requests": len(self._authoriser.book),
            "prss_epoch": self._prss.epoch,
            "audit_seq": self._audit.seq,
            "gate_conversations": self._gate.under_way,
            "counters": len(self._counting.ledger),
        }
        gauges["freezes"] = len(self._freezes.in_force)
        gauges |= self._standing.gauges() | self._peer_clocks.gauges()
        gauges |= {f"queue|{name}": length for name, length in self._outside.queues().items()}
        for coordinator, counted in self._links.count().items():
            gauges |= {f"links|{coordinator}|{state}": n for state, n in zip(LINK_STATES, counted, strict=True)}
        policy, freezes = self.reload.told(), self._freezes.in_force
        return Status(state, reason[:500], counters, gauges, durations, policy, freezes)


def _new_session(index: int, random: Callable[[int], bytes]) -> OwnSession:
    frame_key, frame_secret = nacl.bindings.crypto_sign_seed_keypair(random(32))
    return OwnSession(index, random(32), frame_key, frame_secret)
