"""Ceremonies under way in this enclave: started by an order, fed by frames, ended by a report.

A ceremony belongs to one coordinator and dies with any of its links. Setup and key generation run here; presigning
runs in the worker, and this end only carries its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from enclave.channels.frames import CeremonyChannel, PeerKeys, frame_context
from enclave.errors import KeymootError, LinkFault, Refused
from enclave.protocol.session import RoundMessage, Session
from enclave.tasks import Task, Timers
from enclave.wire import CeremonyFailed
from enclave.worker import describe_failure

MAX_CEREMONIES = 64
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Ticket:
    """What identifies a running ceremony: its coordinator's name for it, and its context (SPEC 0.2)."""

    coordinator: str
    ceremony: bytes
    kind: str
    context: bytes
    members: tuple[int, ...]


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

    def __init__(self, timers: Timers, report: Callable[[str, CeremonyFailed], None]) -> None:
        self._timers, self._report = timers, report
        self._runs: dict[bytes, tuple[CeremonyRun, Callable[[], None]]] = {}
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
        if ticket.context in self._runs:
            raise Refused("replay", "a ceremony with this context is under way")
        cancel = self._timers.after(DEADLINE_S, lambda: run.stop(KeymootError(f"no end within {DEADLINE_S:.0f} s")))
        self._runs[ticket.context] = (run, cancel)
        self._count(f"ceremonies_started|{ticket.kind}")

    def get(self, context: bytes) -> CeremonyRun | None:
        """The run with this context, if it is under way."""
        entry = self._runs.get(context)
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
        for run, _ in list(self._runs.values()):
            if run.ticket.coordinator == coordinator and peer in run.ticket.members:
                run.stop(LinkFault(peer, reason or "the link went down"))

    def abandon(self, coordinator: str, ceremony: bytes) -> None:
        """The coordinator gives a ceremony up."""
        for run, _ in list(self._runs.values()):
            if (run.ticket.coordinator, run.ticket.ceremony) == (coordinator, ceremony):
                run.stop(KeymootError("given up by the coordinator"))

    def end(self, ticket: Ticket, outcome: str, last_round: int) -> None:
        """Take a finished run out of the table. `outcome`: `done`, or the kind of failure."""
        entry = self._runs.pop(ticket.context, None)
        if entry is not None:
            entry[1]()
            self._count(f"ceremonies_ended|{ticket.kind}|{last_round}|{outcome}")

    def fail(self, ticket: Ticket, failure: CeremonyFailed) -> None:
        """Take a failed run out and tell its coordinator."""
        self.end(ticket, failure.kind, failure.round)
        self._report(ticket.coordinator, failure)

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
        rounds: tuple[type[RoundMessage], ...],
        send: Callable[[int, bytes], None],
    ) -> None:
        super().__init__(ticket)
        self._ceremonies, self._send = ceremonies, send
        private = frozenset(number for number, kind in enumerate(rounds, 1) if kind.private)
        self._channel = CeremonyChannel(ticket.context, me, frame_secret, peers, private)
        self.session = Session(ticket.context, me, ticket.members, rounds, self._transmit)
        self._task: Task[None] | None = None

    def start(self, routine: Coroutine[Any, None, None]) -> None:
        """Run the protocol; `routine` reports its own success."""
        self._task = Task(routine, self._ended)
        self._task.start()

    def receive(self, sender: int, frame: bytes) -> None:
        try:
            round_number, content = self._channel.open(sender, frame)
        except LinkFault as fault:
            self.stop(fault)
        else:
            self.session.receive(sender, round_number, content)

    def stop(self, error: KeymootError) -> None:
        if self._task is not None:
            self._task.cancel(error)

    def _transmit(self, round_number: int, receivers: tuple[int, ...], private: bool, content: bytes) -> None:
        for receiver, frame in self._channel.seal(round_number, receivers, private, content):
            self._send(receiver, frame)

    def _ended(self, task: Task[None]) -> None:
        if isinstance(task.outcome, KeymootError):
            missing, last_round = self.session.missing(), self.session.round
            self._ceremonies.fail(self.ticket, failed_report(self.ticket, task.outcome, missing, last_round))
        else:
            self._ceremonies.end(self.ticket, "done", self.session.round)


def failed_report(ticket: Ticket, error: KeymootError, missing: tuple[int, ...], last_round: int = 0) -> CeremonyFailed:
    """The report of a ceremony that ended with `error` in `last_round`."""
    failure = describe_failure(ticket.context, error, missing)
    told = (failure.kind, failure.step, failure.reason[:500], failure.culprits, failure.suspects, last_round)
    return CeremonyFailed(ticket.ceremony, *told)
