"""SPEC 0.8 to 0.11, 3.10, 3.11: one member's part in finding out who broke a ceremony. No I/O and no clock: whoever
owns the ceremony ends it at its deadline.

Whoever is reported as culprit was judged here on signed bodies (`charges.judge`), which anybody can judge again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from enclave.bodies import BodyLog, BodyRef
from enclave.errors import KeymootError, PeerFault
from enclave.protocol.accusations import Accusations
from enclave.protocol.blame_messages import CLOSING, MAX_PROOF_BYTES, STOP, VIEWS, Closing, OpenedSeed, Stop, Views
from enclave.protocol.charges import Charge, Facts, read_body, round_kind
from enclave.protocol.opening import Opener
from enclave.protocol.session import RoundMessage, Session, Transmit
from enclave.tasks import Promise
from enclave.wire import encode

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """How a failed ceremony ended. `culprits`, `subset` and `step` as in `PeerFault`; `silent`: who did not answer, or
    claimed what nobody can prove (convicts nobody); `charges`: what proves it, one a culprit."""

    step: str
    reason: str
    culprits: tuple[int, ...]
    subset: tuple[int, ...]
    silent: tuple[int, ...]
    charges: tuple[Charge, ...] = field(repr=False)


class Blame:
    """Answers for a ceremony, from its first failed check or another member's stop to the verdict."""

    def __init__(
        self,
        facts: Facts,
        session: Session,
        log: BodyLog,
        transmit: Transmit,
        opener: Opener | None,
        max_proof_bytes: int = MAX_PROOF_BYTES,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        """`opener`: None in ceremonies in which nothing is ever opened. `max_proof_bytes`: a frame's room. `begun` is
        called once, when finding out begins: from then on a deadline of its own counts."""
        self._facts, self._session, self._log, self._transmit = facts, session, log, transmit
        self._begun = begun
        self._opener = opener
        self._me = session.me
        self._said: dict[tuple[int, int], RoundMessage] = {}
        self._accusations = Accusations(facts, log, session.me, max_proof_bytes)
        self._fault: PeerFault | None = None
        self._told = False
        self._running = False
        self._waiting: tuple[int, Promise[None]] | None = None
        self.called: Promise[None] = Promise()

    # --- what the ceremony's owner uses ---

    def finish(self) -> None:
        """The ceremony succeeded here: from now on nothing is opened, and only references are kept."""
        self._opener = None
        self._log.release()

    async def run(self, fault: PeerFault | None) -> Outcome:
        """Take part until there is a verdict, or whoever owns the ceremony ends it. `fault`: our own failed check; None
        where another member's stop calls a finished ceremony back."""
        self._running, self._fault = True, fault if fault is not None else self._fault
        self._begun()
        ended: KeymootError | None = None
        try:
            await self._inquire()
        except _Told:
            pass
        except _Ended as end:
            ended = end.error
        outcome = self._outcome(ended)
        self._opener = None
        return outcome

    def receive(self, sender: int, number: int) -> None:
        """A body of a round of blame has verified, and is in the log."""
        body = self._log.body(number, sender)
        if body is None or (number, sender) in self._said:
            self._accusations.note_conflicts()
        elif number > STOP and (number - 1, sender) not in self._said:
            return  # out of order: as good as silent
        else:
            try:
                message = read_body(self._facts, body)
            except PeerFault as fault:
                self._accusations.add(Charge("bad-body", (body,)))
                self._call(fault)
            else:
                self._learn(sender, number, message)
        self._wake()

    def awaited(self) -> tuple[int, ...]:
        """Members whose body of blame is awaited now."""
        if self._waiting is None:
            return ()
        return tuple(j for j in self._session.peers if (self._waiting[0], j) not in self._said)

    # --- the three rounds ---

    async def _inquire(self) -> None:
        # SPEC 0.9
        self._accusations.search()
        self._say(STOP, self._stop())
        await self._gather(STOP)
        # SPEC 0.10
        self._accusations.search()
        self._say(VIEWS, Views(self._refs(), self._accusations.proof()))
        await self._gather(VIEWS)
        # SPEC 0.11
        self._accusations.search()
        stops = {j: said for (_, j), said in self._said.items() if isinstance(said, Stop)}
        self._accusations.compare_views(stops, self._session.round)
        # SPEC 3.11
        opening = self._opener is not None and not self._accusations and self._opener.may_open(self._log, self._said)
        seeds: tuple[OpenedSeed, ...] = ()
        if opening and self._opener is not None:
            seeds = self._opener.open()
        views = tuple(ref for j in self._session.members if (ref := self._log.ref(VIEWS, j)) is not None)
        self._say(CLOSING, Closing(views, seeds, self._accusations.proof()))
        if self._accusations or self._accusations.split():
            return
        # SPEC 3.12
        await self._gather(CLOSING)
        if opening and self._opener is not None and not self._accusations:
            for charge in self._opener.accuse(self._log):
                self._accusations.add(charge)

    def _stop(self) -> Stop:
        own = self._log.body(self._facts.rules.confirmation_round, self._me)
        follows = self._first_stop()
        fault = self._fault
        number, refs, proof = self._session.round, self._refs(), self._accusations.proof()
        if fault is None or _follows(fault):
            return Stop("", number, 0, follows, own, refs, proof)
        accused = fault.culprits[0] if fault.culprits else 0
        return Stop(fault.step, number, accused, None, own, refs, proof)

    def _refs(self) -> tuple[BodyRef, ...]:
        """References to all broadcast bodies here; of rounds that do not exist a cheater may have signed bodies too."""
        kinds = {ref: round_kind(self._facts.rules, ref.round) for ref in self._log.broadcast_refs()}
        return tuple(ref for ref, kind in kinds.items() if kind is not None and not kind.private)

    def _first_stop(self) -> BodyRef | None:
        first = next((j for number, j in self._said if number == STOP and j != self._me), None)
        return None if first is None else self._log.ref(STOP, first)

    async def _gather(self, number: int) -> None:
        """Until all have said `number`, or there is a proof to tell them."""
        while not self._settled(number):
            promise: Promise[None] = Promise()
            self._waiting = (number, promise)
            try:
                await promise
            except KeymootError as error:
                raise _Ended(error) from None
        self._waiting = None

    def _settled(self, number: int) -> bool:
        if self._accusations and not self._told and self._accusations.proof():
            return True
        if self._told:
            raise _Told
        everybody = all((number, j) in self._said for j in self._session.peers)
        return everybody or (number == CLOSING and self._opener is not None and self._opener.knows_all(self._log))

    def _call(self, fault: PeerFault) -> None:
        """End the protocol, or what is left of it, if it goes on here."""
        if not self._running:
            self._session.fail(fault)
            self._fault = self._fault or fault
            self.called.resolve(None)

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting[1].resolve(None)

    # --- what is said and heard ---

    def _say(self, number: int, message: Stop | Views | Closing) -> None:
        self._told = self._told or bool(message.proof)
        self._said[number, self._me] = message
        self._transmit(number, self._session.peers, False, self._session.view + encode(message))

    def _learn(self, sender: int, number: int, message: RoundMessage) -> None:
        self._said[number, sender] = message
        if isinstance(message, Stop):
            for ref in (*message.refs, *([message.follows] if message.follows else [])):
                self._log.hear(ref)
            if message.confirmation is not None:
                self._log.add(message.confirmation.ref, message.confirmation.content)
            self._call(PeerFault("0.9", f"signer {sender} stopped"))
        elif isinstance(message, Views):
            for ref in message.refs:
                self._log.hear(ref)
        elif isinstance(message, Closing):
            for ref in message.views:
                self._log.hear(ref)
        self._accusations.add_proof(message.proof)  # type: ignore[attr-defined]
        self._accusations.note_conflicts()

    # --- the verdict ---

    def _outcome(self, ended: KeymootError | None) -> Outcome:
        found = self._accusations
        if found:
            return Outcome(found.first.step, found.first.reason, found.culprits, (), (), found.charges)
        step, reason, culprits_here, subset = self._own_account()
        split = found.split()
        if split is not None:
            charge, verdict = split
            return Outcome(verdict.step, verdict.reason, (), verdict.subset, (), (charge,))
        silent = self._unexplained()
        if ended is not None:
            silent |= set(self.awaited())
            reason = f"{reason}; then {ended}"
        return Outcome(step, reason, culprits_here, subset, tuple(sorted(silent - {self._me})), ())

    def _own_account(self) -> tuple[str, str, tuple[int, ...], tuple[int, ...]]:
        fault = self._fault
        if fault is not None and not _follows(fault):
            return fault.step, fault.reason, fault.culprits, fault.subset
        stops = [(j, said) for (_, j), said in sorted(self._said.items()) if isinstance(said, Stop) and said.step]
        if not stops:
            return "0.9", "a member stopped, and nobody says why", (), ()
        j, stop = stops[0]
        return stop.step, f"signer {j} stopped for this step", (), ()

    def _unexplained(self) -> set[int]:
        """Who said what nobody can prove, and whom it accused; who lacks bodies that others have, and who sent those;
        who opened nothing."""
        found: set[int] = set()
        listed: dict[int, set[tuple[int, int]]] = {}
        for (_, j), said in self._said.items():
            if isinstance(said, Stop) and said.accused and j != self._me:
                found |= {j, said.accused}
            elif isinstance(said, Views):
                listed[j] = {(ref.round, ref.sender) for ref in said.refs if ref.round < STOP}
        if len(listed) == len(self._session.members):
            # Everybody's bodies had arrived before everybody's stops, so a hole is the work of one of the two.
            for j, places in listed.items():
                holes = {sender for _, sender in set().union(*listed.values()) - places}
                found |= {j, *holes} if holes else set()
        if self._opener is not None:
            found |= self._opener.silent(self._log, self._said)
        return found


def _follows(fault: PeerFault) -> bool:
    """Whether it says no more than that another member stopped."""
    return fault.step == "0.9" and not fault.culprits


class _Told(Exception):
    """We have told the others what we can prove: there is nothing to wait for."""


class _Ended(Exception):
    """Whoever owns the ceremony ended it: a deadline, or a link that is gone."""

    def __init__(self, error: KeymootError) -> None:
        super().__init__(str(error))
        self.error = error


async def accountable(routine: Awaitable[T], blame: Blame, deliver: Callable[[T], None]) -> Outcome:
    """Run a protocol, hand its result to `deliver`, and answer for it afterwards: until somebody stops, or for ever.

    Returns only where somebody broke the protocol. Raises what ends it otherwise: a deadline or a link convicts nobody.
    """
    try:
        deliver(await routine)
    except PeerFault as fault:
        # Its frames hold the values of the ceremony, which is destroyed by now.
        fault.__traceback__ = fault.__context__ = None
        return await blame.run(fault)
    blame.finish()
    await blame.called
    return await blame.run(None)
