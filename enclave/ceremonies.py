"""Ceremonies under way in this enclave: started by an order, fed by frames, ended by a report.

A ceremony belongs to one coordinator and dies with any of its links. Setup and key generation run here; presigning
runs in the worker, and this end only carries its frames. One that succeeded stays for a while: a member whose last
check failed may call it back to find out who broke it (SPEC 0.9).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from enclave.bodies import BodyLog
from enclave.channels.frames import CeremonyChannel, PeerKeys, frame_context
from enclave.errors import KeymootError, LinkFault, Refused
from enclave.evidence import CeremonyRecord
from enclave.protocol.blame import Blame, Outcome, accountable
from enclave.protocol.blame_messages import BLAME_ROUNDS
from enclave.protocol.charges import Charge, Facts, Rules
from enclave.protocol.session import Session
from enclave.tasks import Task, Timers
from enclave.verdicts import Verdicts
from enclave.wire import CEREMONY_DEADLINE_S, CeremonyFailed
from enclave.worker import Failed, describe_failure, describe_outcome

MAX_CEREMONIES = 64
# For the protocol, and once more for finding out who broke it.
DEADLINE_S = BLAME_DEADLINE_S = CEREMONY_DEADLINE_S
MAX_LINGERING = 64
LINGER_S = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class Ticket:
    """What identifies a running ceremony: its coordinator's name for it, and its context (SPEC 0.2)."""

    coordinator: str
    ceremony: bytes
    kind: str
    context: bytes
    members: tuple[int, ...]
    record: CeremonyRecord = field(repr=False)


class CeremonyRun:
    """A running ceremony. Subclasses say where its rounds are computed."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket

    def receive(self, sender: int, frame: bytes) -> None:
        """A frame whose sender is what the coordinator says it is; nothing about it is verified yet."""
        raise NotImplementedError

    def stop(self, error: KeymootError) -> None:
        """End it with `error`."""
        raise NotImplementedError


class Ceremonies:
    """The table of running ceremonies, bounded; for each coordinator, at most one for each context."""

    def __init__(self, timers: Timers, report: Callable[[str, CeremonyFailed], None], verdicts: Verdicts) -> None:
        self._timers, self._report, self._verdicts = timers, report, verdicts
        self._runs: dict[bytes, tuple[CeremonyRun, Callable[[], None]]] = {}
        self._lingering: dict[bytes, tuple[CeremonyRun, Callable[[], None]]] = {}
        self.counters: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def check_room(self, coordinator: str) -> None:
        """Raises `Refused` where one more of this coordinator would be too many."""
        if sum(run.ticket.coordinator == coordinator for run, _ in self._runs.values()) >= MAX_CEREMONIES:
            raise Refused("busy", f"{MAX_CEREMONIES} ceremonies of {coordinator} are under way")

    def running(self, kind: str) -> bool:
        """Whether a ceremony of this kind is under way."""
        return any(run.ticket.kind == kind for run, _ in self._runs.values())

    def add(self, run: CeremonyRun) -> None:
        """Enter a run. No context comes twice in a boot: it holds a nonce of ours that is spent (SPEC 0.4)."""
        ticket = run.ticket
        if ticket.context in self._runs or ticket.context in self._lingering:
            raise Refused("replay", "a ceremony with this context is under way")
        self._runs[ticket.context] = (run, self._deadline(run, DEADLINE_S))
        self._count(f"ceremonies_started|{ticket.kind}")

    def get(self, context: bytes) -> CeremonyRun | None:
        """The run with this context, if it is under way or still answered for."""
        entry = self._runs.get(context) or self._lingering.get(context)
        return entry[0] if entry else None

    def on_frame(self, coordinator: str, sender: int, frame: bytes) -> None:
        """Route a ceremony frame. Raises `LinkFault` where no such ceremony is under way with that sender."""
        run = self.get(frame_context(frame))
        if run is None or run.ticket.coordinator != coordinator or sender not in run.ticket.members:
            self._count("frames_of_no_ceremony")
            raise LinkFault(sender, "a frame of no ceremony under way")
        run.receive(sender, frame)

    def on_link_lost(self, coordinator: str, peer: int, reason: str) -> None:
        """A link went down: its ceremonies fail cleanly."""
        fault = LinkFault(peer, reason or "the link went down")
        for run, _ in [*self._runs.values(), *self._lingering.values()]:
            if run.ticket.coordinator == coordinator and peer in run.ticket.members:
                run.stop(fault)

    def abandon(self, coordinator: str, ceremony: bytes) -> None:
        """The coordinator gives a ceremony up."""
        for run, _ in list(self._runs.values()):
            if (run.ticket.coordinator, run.ticket.ceremony) == (coordinator, ceremony):
                run.stop(KeymootError("given up by the coordinator"))

    def inquire(self, context: bytes) -> None:
        """A run has failed, also one that had succeeded, and its members find out who it was: from now on
        `BLAME_DEADLINE_S` count for it, however late it failed. Called once for each run."""
        for table in (self._runs, self._lingering):
            if context in table:
                run, cancel = table[context]
                cancel()
                table[context] = (run, self._deadline(run, BLAME_DEADLINE_S))

    def _deadline(self, run: CeremonyRun, seconds: float) -> Callable[[], None]:
        return self._timers.after(seconds, lambda: run.stop(KeymootError(f"no end within {seconds:.0f} s")))

    def done(self, ticket: Ticket, last_round: int) -> None:
        """A run has succeeded: it stays for `LINGER_S`, the oldest of too many no longer."""
        run = self._take_out(ticket, "done", last_round)
        if run is None:
            return
        if len(self._lingering) >= MAX_LINGERING:
            self._release(next(iter(self._lingering)))
        cancel = self._timers.after(LINGER_S, lambda: self._release(ticket.context))
        self._lingering[ticket.context] = (run, cancel)

    def fail(self, ticket: Ticket, failure: CeremonyFailed, charges: Sequence[Charge] = ()) -> None:
        """Take a failed run out and tell its coordinator; also one that had succeeded and was called back."""
        if self._take_out(ticket, failure.kind, failure.round) is not None or self.forget(ticket.context):
            self._verdicts.tell(ticket.coordinator, ticket.context, ticket.record, failure, charges)
            self._report(ticket.coordinator, failure)

    def _take_out(self, ticket: Ticket, outcome: str, last_round: int) -> CeremonyRun | None:
        """Take a run out of those under way. `outcome`: `done`, or the kind of failure."""
        run, cancel = self._runs.pop(ticket.context, (None, None))
        if run is not None and cancel is not None:
            cancel()
            self._count(f"ceremonies_ended|{ticket.kind}|{last_round}|{outcome}")
        return run

    def _release(self, context: bytes) -> None:
        entry = self._lingering.get(context)
        if entry is not None:
            entry[0].stop(KeymootError("answered for long enough"))

    def forget(self, context: bytes) -> bool:
        """A run that had succeeded is not answered for any more. Whether it was."""
        entry = self._lingering.pop(context, None)
        if entry is not None:
            entry[1]()
        return entry is not None

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1


class LocalRun(CeremonyRun):
    """A ceremony whose rounds run in this process."""

    def __init__(
        self,
        ceremonies: Ceremonies,
        ticket: Ticket,
        me: int,
        frame_secret: bytes,
        peers: list[PeerKeys],
        t: int,
        rules: Rules,
        send: Callable[[int, bytes], None],
    ) -> None:
        super().__init__(ticket)
        self._ceremonies, self._send = ceremonies, send
        private = frozenset(number for number, kind in enumerate(rules.rounds, 1) if kind.private)
        self._frames = dict.fromkeys(ticket.members, 0)
        self._max_frames = len(rules.rounds) + len(BLAME_ROUNDS)
        log = BodyLog(self._max_frames + 1)
        self._channel = CeremonyChannel(ticket.context, me, frame_secret, peers, private, log)
        self.session = Session(ticket.context, me, ticket.members, rules.rounds, self._transmit)
        # The second half of a libsodium key is the public one.
        frame_keys = {keys.peer: keys.frame_key for keys in peers} | {me: frame_secret[32:]}
        facts = Facts(ticket.context, ticket.members, t, frame_keys, rules)
        self._blame = Blame(
            facts, self.session, log, self._transmit, None, begun=lambda: ceremonies.inquire(ticket.context)
        )
        self._delivered = False
        self._task: Task[Outcome] | None = None

    def start(self, routine: Coroutine[Any, None, T], deliver: Callable[[T], None]) -> None:
        """Run the protocol; its result goes to `deliver`, and then the run stays for those who call it back."""

        def delivered(result: T) -> None:
            deliver(result)
            self._delivered = True
            self._ceremonies.done(self.ticket, self.session.round)

        self._task = Task(accountable(routine, self._blame, delivered), self._ended)
        self._task.start()

    def receive(self, sender: int, frame: bytes) -> None:
        # Of a frame's size the wire's bound holds.
        self._frames[sender] += 1
        if self._frames[sender] > self._max_frames:
            self.stop(LinkFault(sender, "more frames than the protocol has"))
            return
        try:
            round_number, content = self._channel.open(sender, frame)
        except LinkFault as fault:
            self.stop(fault)
            return
        if round_number in BLAME_ROUNDS:
            self._blame.receive(sender, round_number)
        else:
            self.session.receive(sender, round_number, content)

    def stop(self, error: KeymootError) -> None:
        if self._task is not None:
            self._task.cancel(error)

    def _transmit(self, round_number: int, receivers: tuple[int, ...], private: bool, content: bytes) -> None:
        for receiver, frame in self._channel.seal(round_number, receivers, private, content):
            self._send(receiver, frame)

    def _ended(self, task: Task[Outcome]) -> None:
        if isinstance(task.outcome, Outcome):
            failed = describe_outcome(self.ticket.context, task.outcome, self.session.round)
            self._ceremonies.fail(self.ticket, report_failed(self.ticket, failed), task.outcome.charges)
        elif self._delivered:
            self._ceremonies.forget(self.ticket.context)
        elif isinstance(task.outcome, KeymootError):
            missing, last_round = self.session.missing(), self.session.round
            self._ceremonies.fail(self.ticket, failed_report(self.ticket, task.outcome, missing, last_round))


def failed_report(ticket: Ticket, error: KeymootError, missing: tuple[int, ...], last_round: int = 0) -> CeremonyFailed:
    """The report of a ceremony that ended with `error` in `last_round`."""
    return report_failed(ticket, describe_failure(ticket.context, error, missing, last_round))


def report_failed(ticket: Ticket, failed: Failed) -> CeremonyFailed:
    """The report of a ceremony that failed, in its coordinator's words."""
    told = (failed.kind, failed.step, failed.reason, failed.culprits, failed.suspects, failed.round, failed.group)
    return CeremonyFailed(ticket.ceremony, *told)
