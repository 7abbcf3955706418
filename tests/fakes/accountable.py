"""Ceremonies whose members answer for them (SPEC 0.9 to 0.11, 3.10 to 3.12): real signatures, real blame, no channel.

A cheater is honest code whose outgoing bodies a test replaces, and signs, for each receiver (`Cheat`).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from enclave import wire
from enclave.bodies import BROADCAST, BodyLog, SignedBody, body_digest
from enclave.channels.frames import sign_digest
from enclave.errors import KeymootError
from enclave.protocol import keygen
from enclave.protocol.blame import Blame, Outcome, accountable
from enclave.protocol.blame_messages import BLAME_ROUNDS, CLOSING, STOP, Closing, Stop
from enclave.protocol.charges import Charge, Facts, Rules, Verdict, judge
from enclave.protocol.keygen_rules import KeygenRules
from enclave.protocol.opening import Opener
from enclave.protocol.presign_rules import PresignRules
from enclave.protocol.session import Session
from enclave.protocol.setup_rules import SetupRules
from enclave.tasks import Task
from policies.transcript import DIGEST_BYTES
from tests.fakes.identities import frame_keys
from tests.fakes.rounds import (
    ROSTER_DIGEST,
    Alter,
    Ceremony,
    CheatingSession,
    honest_seeds,
    keygen_ceremony,
    presign_ceremony,
    setup_ceremony,
    sub_seeds,
    verify_fake_signature,
)

Cheat = Callable[[int, int, int, bytes], bytes | None]
Content = tuple[int, int, int, bytes, bytes]


@dataclass
class Party:
    """One member: its session, log and blame, and what came of it. `routine` makes its protocol, once it starts."""

    session: Session
    log: BodyLog
    blame: Blame
    routine: Callable[[], Coroutine[Any, None, Any]]
    delivered: list[Any] = field(default_factory=list)
    task: Task[Outcome] | None = None

    def start(self) -> None:
        """It begins."""
        self.task = Task(accountable(self.routine(), self.blame, self.delivered.append), lambda task: None)
        self.task.start()

    @property
    def ended(self) -> bool:
        """Whether it takes nothing more."""
        return self.task is not None and self.task.ended

    @property
    def outcome(self) -> Any:
        """The verdict, the error it ended with, or None while it waits or answers."""
        return None if self.task is None else self.task.outcome


class Court:
    """Runs an accountable ceremony. `cheat(sender, receiver, round, content)` replaces what a cheater sends; what it
    returns is signed by the sender. None withholds it. `alters`: cheaters that hold and hash what they sent."""

    def __init__(self, ceremony: Ceremony, rules: Rules, alters: Mapping[int, Alter] | None = None) -> None:
        self.ceremony, self.rules, self.alters = ceremony, rules, alters or {}
        keys = {j: frame_keys(j)[0] for j in ceremony.members}
        self.facts = Facts(ceremony.context, ceremony.members, ceremony.t, keys, rules)
        self.queue: deque[tuple[int, Content]] = deque()
        self.sent: list[SignedBody] = []
        self.cheat: Cheat = lambda sender, receiver, number, content: content
        self.private = {number for number, kind in enumerate(rules.rounds, 1) if kind.private}
        self.parties = {j: self._party(j) for j in ceremony.members}

    def _party(self, j: int) -> Party:
        log = BodyLog(len(self.rules.rounds) + len(BLAME_ROUNDS) + 1)
        kind = CheatingSession if j in self.alters else Session
        ceremony, transmit = self.ceremony, self._transmit(j, log)
        session = kind(ceremony.context, j, ceremony.members, self.rules.rounds, transmit)
        if isinstance(session, CheatingSession):
            session.alter = self.alters[j]
        opener = None
        if isinstance(self.rules, PresignRules):
            seeds = honest_seeds(2 * ceremony.t + 1, ceremony.t)[j]
            own = sub_seeds(seeds, ceremony.members, ceremony.t, j, ceremony.context)
            opener = Opener(self.facts, self.rules, own)
        blame = Blame(self.facts, session, log, transmit, opener)
        return Party(session, log, blame, partial(ceremony.start, session))

    def sign(self, sender: int, number: int, receiver: int, content: bytes) -> SignedBody:
        """A body signed by `sender`."""
        unsigned = SignedBody(number, sender, receiver, content, b"")
        signature = sign_digest(frame_keys(sender)[1], body_digest(self.ceremony.context, unsigned.ref))
        return SignedBody(number, sender, receiver, content, signature)

    def _transmit(self, sender: int, log: BodyLog) -> Callable[[int, tuple[int, ...], bool, bytes], None]:
        def transmit(number: int, receivers: tuple[int, ...], private: bool, content: bytes) -> None:
            for receiver in receivers:
                changed = self.cheat(sender, receiver, number, content)
                if changed is not None:
                    body = self.sign(sender, number, receiver if private else BROADCAST, changed)
                    self.sent.append(body)
                    self.queue.append((receiver, (number, sender, body.receiver, changed, body.signature)))
            if not private:
                own = self.sign(sender, number, BROADCAST, content)
                log.add(own.ref, content)

        return transmit

    def start(self) -> None:
        """Everybody begins."""
        for party in self.parties.values():
            party.start()

    def run(self) -> dict[int, Any]:
        """Begin, and deliver until nothing is left."""
        self.start()
        return self.deliver()

    def deliver(self) -> dict[int, Any]:
        """Deliver in order; the outcomes of those that have one."""
        while self.queue:
            receiver, (number, sender, named, content, signature) = self.queue.popleft()
            party = self.parties[receiver]
            if party.ended:
                continue
            party.log.add(SignedBody(number, sender, named, content, signature).ref, content)
            if number in BLAME_ROUNDS:
                party.blame.receive(sender, number)
            else:
                party.session.receive(sender, number, content)
        return {j: party.outcome for j, party in self.parties.items()}

    def end(self, error: str = "no end within 60 s") -> dict[int, Any]:
        """The deadline passes for everybody that has not ended."""
        for party in self.parties.values():
            if party.task is not None:
                party.task.cancel(KeymootError(error))
        return {j: party.outcome for j, party in self.parties.items()}

    def check(self, cheaters: set[int]) -> None:
        """Holds in every run: nobody honest is convicted or named, and whatever convicts, convicts anybody's judge."""
        for j, party in self.parties.items():
            outcome = party.outcome
            if j in cheaters or not isinstance(outcome, Outcome):
                continue
            assert set(outcome.culprits) <= cheaters, f"{j} convicts an honest signer: {outcome}"
            assert not outcome.subset or cheaters & set(outcome.subset), f"{j} names an honest group: {outcome}"
            for charge in outcome.charges:
                verdict = judge(self.facts, charge)
                assert set(verdict.culprits) <= cheaters
                assert not verdict.subset or cheaters & set(verdict.subset)
        self._check_openings(cheaters)

    def _check_openings(self, cheaters: set[int]) -> None:
        """SPEC 3.11: whoever honest opened holds everybody's abort, and no honest member has confirmed."""
        for j in self.opened() - cheaters:
            for other in self.ceremony.members:
                stop = self.parties[j].log.body(STOP, other)
                assert stop is not None
                assert wire.decode(stop.content[DIGEST_BYTES:], Stop).confirmation is None
            confirmed = {body.sender for body in self.sent if body.round == self.rules.confirmation_round}
            assert confirmed <= cheaters, f"{j} opened what {confirmed} confirmed"

    def opened(self) -> set[int]:
        """Who sent sub-seeds."""
        found = set()
        for body in self.sent:
            if body.round == CLOSING:
                with contextlib.suppress(wire.Malformed):
                    if wire.decode(body.content[DIGEST_BYTES:], Closing).seeds:
                        found.add(body.sender)
        return found

    def body(self, number: int, sender: int) -> SignedBody:
        """The first body of a round that a member sent."""
        return next(body for body in self.sent if (body.round, body.sender) == (number, sender))


def judged(facts: Facts, charge: Charge) -> Verdict | str:
    """The verdict, or why there is none."""
    try:
        return judge(facts, charge)
    except KeymootError as error:
        return str(error)


def court(name: str, n: int = 3, t: int = 1, m: int = 3, alters: Mapping[int, Alter] | None = None) -> Court:
    """A court over one of the three ceremonies."""
    if name == "setup":
        return Court(setup_ceremony(n, t), SetupRules(), alters)
    if name == "keygen":
        plan = keygen.KeyPlan("test", ROSTER_DIGEST, t, 1, ("a", "b"))
        return Court(keygen_ceremony(n, t), KeygenRules(plan, verify_fake_signature), alters)
    return Court(presign_ceremony(n, t, m), PresignRules(m), alters)
