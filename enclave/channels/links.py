"""The links of this enclave: one for each (coordinator, peer), brought up and replaced as peers come and go.

Every frame of a handshake is hostile until its signature verifies, so an established link stays until the next one is
complete, and handshakes are rationed: each costs an HSM signature.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from enclave.audit import ChainEnd
from enclave.channels.frames import HANDSHAKE_FRAME
from enclave.channels.handshake import (
    INITIATOR,
    RESPONDER,
    Answer,
    Finish,
    Identity,
    Initiator,
    Link,
    Open,
    Responder,
    signing_digest,
)
from enclave.channels.told import Judge, Tell, proof_of
from enclave.errors import KeymootError, LinkFault, Refused
from enclave.peers import SeenPeer
from enclave.tasks import Promise, Task, Timers
from enclave.wire import Wire, decode, encode

HANDSHAKE_TIMEOUT_S = 10.0
RETRY_FIRST_S, RETRY_MOST_S = 1.0, 30.0
# A hello tells a clock (SPEC 7.8): an older one is not said again.
FRESH_HELLO_S = 1.0
RATION_HANDSHAKES, RATION_WINDOW_S = 20, 10.0

Key = tuple[str, int]


class Knock(Wire, frozen=True, tag=4):
    """The higher index has no link and asks the lower one to open one. Unauthenticated: a hint, rationed."""


Message = Open | Answer | Finish | Knock | Tell


@dataclass
class _Attempt:
    """A handshake under way with one peer through one coordinator. `before`: what was known of it at our hello."""

    initiator: Initiator | None = None
    before: SeenPeer | None = None
    responder: Responder | None = None
    retry_s: float = RETRY_FIRST_S
    cancel_timer: Callable[[], None] = lambda: None


class Links:
    """All links and handshake attempts. Effects go through the callables given; nothing here does I/O."""

    def __init__(
        self,
        identity: Identity,
        random: Callable[[int], bytes],
        timers: Timers,
        clock: Callable[[], float],
        judge: Judge,
        sign: Callable[[bytes], Promise[bytes]],
        send: Callable[[str, int, bytes], None],
        changed: Callable[[str, int, Link | None, str], None],
        failed: Callable[[str, int, str], None],
    ) -> None:
        """`sign`: the HSM's signature over a digest. `changed(coordinator, peer, link or None, reason)`: a link is up
        or down. `failed(coordinator, peer, reason)`: an attempt came to nothing; a link that is up stays."""
        self._identity, self._random, self._timers, self._clock = identity, random, timers, clock
        self._sign, self._send, self._changed, self._failed = sign, send, changed, failed
        self._judge = judge
        self._links: dict[Key, Link] = {}
        # What was known of the peer when our hello of the link's handshake was made.
        self._before: dict[Key, SeenPeer | None] = {}
        self._attempts: dict[Key, _Attempt] = {}
        self._online: dict[str, frozenset[int]] = {}
        self._rations: dict[Key, list[float]] = {}

    def get(self, coordinator: str, peer: int) -> Link | None:
        """The established link, or None."""
        return self._links.get((coordinator, peer))

    def count(self) -> dict[str, tuple[int, int, int]]:
        """By coordinator: links that are up, peers with which one is being made, and those that it does not reach."""
        peers = self._identity.roster.n - 1
        counted = {}
        for coordinator, online in self._online.items():
            up = sum(key[0] == coordinator for key in self._links)
            counted[coordinator] = (up, len(online) - up, peers - len(online))
        return counted

    @property
    def coordinators(self) -> int:
        """How many coordinators the signer has told of."""
        return len(self._online)

    def on_presence(self, coordinator: str, online: tuple[int, ...]) -> None:
        """Peers that went away lose their link; with those that came, one is brought up."""
        others = frozenset(j for j in online if j in self._identity.roster.indices) - {self._identity.me}
        before = self._online.get(coordinator, frozenset())
        self._online[coordinator] = others
        for peer in sorted(before - others):
            self._drop((coordinator, peer), "the coordinator no longer reaches it")
        for peer in sorted(others - before):
            self._begin((coordinator, peer), _Attempt())

    def on_frame(self, coordinator: str, sender: int, data: bytes) -> None:
        """A handshake frame (its kind byte included). Raises `LinkFault` or `Malformed`."""
        key = (coordinator, sender)
        if sender not in self._online.get(coordinator, frozenset()):
            raise LinkFault(sender, "a handshake with a signer that is not online")
        message: Message = decode(data[1:], Message)  # type: ignore[arg-type]
        if isinstance(message, Open):
            self._on_open(key, message)
        elif isinstance(message, Answer):
            self._on_answer(key, message)
        elif isinstance(message, Finish):
            self._on_finish(key, message)
        elif isinstance(message, Tell):
            self._on_tell(key, message)
        elif self._identity.me < sender:
            self._on_knock(key)

    def renew(self) -> None:
        """SPEC 7.8: make all links anew, as their hellos' clocks hold no longer; each stays until its next is there."""
        for key in self._links:
            if key not in self._attempts:
                self._begin(key, _Attempt())

    def drop_all(self, reason: str) -> None:
        """The way to the network is gone."""
        for key in {*self._links, *self._attempts}:
            self._drop(key, reason)
        self._online.clear()
        self._rations.clear()

    # --- the three messages ---

    def _begin(self, key: Key, attempt: _Attempt) -> None:
        previous = self._attempts.get(key)
        if previous is not None:
            previous.cancel_timer()
        self._attempts[key] = attempt
        attempt.before = self._judge.seen(key[1])
        if self._identity.me < key[1]:
            attempt.initiator = Initiator(self._identity, key[1], self._random)
            self._transmit(key, Open(attempt.initiator.hello))
        else:
            self._transmit(key, Knock())
        delay_s = max(HANDSHAKE_TIMEOUT_S, attempt.retry_s)
        attempt.cancel_timer = self._timers.after(delay_s, lambda: self._retry(key, attempt))

    def _retry(self, key: Key, attempt: _Attempt) -> None:
        if self._attempts.get(key) is attempt and key[1] in self._online.get(key[0], frozenset()):
            self._begin(key, _Attempt(retry_s=min(attempt.retry_s * 2, RETRY_MOST_S)))

    def _on_knock(self, key: Key) -> None:
        """Say again what was just said (it may have come before the peer was there), or begin."""
        self._ration(key)
        attempt = self._attempts.get(key)
        if attempt is not None and attempt.initiator is not None and attempt.initiator.age_s <= FRESH_HELLO_S:
            self._transmit(key, Open(attempt.initiator.hello))
        else:
            self._begin(key, _Attempt())

    def _on_open(self, key: Key, message: Open) -> None:
        if self._identity.me < key[1]:
            raise LinkFault(key[1], "the higher index does not open")
        attempt = self._attempts.get(key)
        if attempt is not None and attempt.responder is not None and attempt.responder.opening == message:
            return  # said again; the answer is on its way
        self._ration(key)
        try:
            responder = Responder(self._identity, key[1], message, self._random)
        except LinkFault as fault:
            self._failed(key[0], key[1], fault.reason)
            raise
        if attempt is None:
            # Where our finish gets lost the other end has a new link and we the old one: then ask again.
            attempt = self._attempts[key] = _Attempt()
            attempt.cancel_timer = self._timers.after(HANDSHAKE_TIMEOUT_S, lambda: self._retry(key, attempt))
        attempt.responder, attempt.before = responder, self._judge.seen(key[1])

        async def answer() -> None:
            signature = await self._sign(signing_digest(RESPONDER, responder.transcript))
            self._transmit(key, responder.answer(signature))

        self._run(key, answer)

    def _on_answer(self, key: Key, message: Answer) -> None:
        attempt = self._attempts.get(key)
        if attempt is None or attempt.initiator is None:
            raise LinkFault(key[1], "an answer to no hello of ours")
        initiator = attempt.initiator
        link, transcript = initiator.accept(message)
        attempt.initiator = None
        self._admit(key, link, attempt.before, answered=True)

        async def finish() -> None:
            signature = await self._sign(signing_digest(INITIATOR, transcript))
            if self._attempts.get(key) is attempt:
                self._transmit(key, initiator.finish(link, transcript, signature))
                self._establish(key, initiator.signed(link, signature), attempt.before)

        self._run(key, finish)

    def _on_finish(self, key: Key, message: Finish) -> None:
        attempt = self._attempts.get(key)
        if attempt is None or attempt.responder is None:
            raise LinkFault(key[1], "a finish of no handshake of ours")
        link = attempt.responder.accept(message)
        self._admit(key, link, attempt.before, answered=False)
        self._establish(key, link, attempt.before)

    # --- SPEC 0.7 ---

    def tell(self, key: Key) -> None:
        """Tell the peer at the other end of a link how far our chain is on disk."""
        link, chain = self._links.get(key), self._identity.chain()
        if link is not None:
            self._transmit(key, Tell(chain.version, chain.head, proof_of(link, self._identity.me, chain)))

    def tell_all(self) -> None:
        """Tell everybody."""
        for key in self._links:
            self.tell(key)

    def _on_tell(self, key: Key, message: Tell) -> None:
        link = self._links.get(key)
        chain = ChainEnd(message.state_version, message.audit_head)
        if link is None or not hmac.compare_digest(proof_of(link, key[1], chain), message.proof):
            raise LinkFault(key[1], "a state told on no link of ours")
        try:
            self._judge.on_told(key[1], link.peer.boot_nonce, self._before[key], chain)
        except Refused as refusal:
            self._shut_out(key, refusal)
            raise

    def _admit(self, key: Key, link: Link, before: SeenPeer | None, *, answered: bool) -> None:
        """The attempt goes on after a refusal, more and more slowly: an operator may have accepted the state."""
        try:
            self._judge.admit(link.peer, before, answered)
        except Refused as refusal:
            self._shut_out(key, refusal)
            raise
        for other in [other for other in self._links if other[1] == key[1]]:
            # Its own is replaced when the handshake is complete.
            if other != key and self._links[other].peer.boot_nonce != link.peer.boot_nonce:
                self._unlink(other, "its enclave has started anew")
                if other not in self._attempts:
                    self._begin(other, _Attempt())

    def _shut_out(self, key: Key, refusal: Refused) -> None:
        for other in [other for other in self._links if other[1] == key[1]]:
            self._unlink(other, refusal.reason)
            if other not in self._attempts:
                attempt = self._attempts[other] = _Attempt(retry_s=RETRY_MOST_S)
                attempt.cancel_timer = self._timers.after(RETRY_MOST_S, partial(self._retry, other, attempt))
        self._failed(key[0], key[1], refusal.reason)

    # --- links ---

    def _establish(self, key: Key, link: Link, before: SeenPeer | None) -> None:
        attempt = self._attempts.pop(key, None)
        if attempt is not None:
            attempt.cancel_timer()
        if key in self._links:
            self._changed(key[0], key[1], None, "replaced by a new handshake")
        self._links[key], self._before[key] = link, before
        self._changed(key[0], key[1], link, "")

    def _drop(self, key: Key, reason: str) -> None:
        attempt = self._attempts.pop(key, None)
        if attempt is not None:
            attempt.cancel_timer()
        self._unlink(key, reason)

    def _unlink(self, key: Key, reason: str) -> None:
        self._before.pop(key, None)
        if self._links.pop(key, None) is not None:
            self._changed(key[0], key[1], None, reason)

    def _run(self, key: Key, step: Callable[[], object]) -> None:
        def ended(task: Task[None]) -> None:
            if isinstance(task.outcome, KeymootError):
                self._failed(key[0], key[1], str(task.outcome))

        Task(step(), ended).start()  # type: ignore[arg-type]

    def _transmit(self, key: Key, message: Message) -> None:
        self._send(key[0], key[1], HANDSHAKE_FRAME + encode(message))

    def _ration(self, key: Key) -> None:
        now = self._clock()
        recent = [at for at in self._rations.get(key, []) if now - at < RATION_WINDOW_S]
        if len(recent) >= RATION_HANDSHAKES:
            raise LinkFault(key[1], f"more than {RATION_HANDSHAKES} handshakes in {RATION_WINDOW_S:.0f} s")
        self._rations[key] = [*recent, now]
