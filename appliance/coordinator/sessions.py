"""The signers that are connected: both connections of each, their links, and the relay between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import WSCloseCode

from appliance import relay
from appliance.coordinator.boots import Boots
from appliance.coordinator.changes import Changes
from appliance.coordinator.connection import Connection
from enclave import wire
from policies.errors import Refused
from policies.roster import Roster

# Groups of signers of which it is kept whether they are ready.
MAX_GROUPS = 256


class Listener(Protocol):
    """Who is told about signers."""

    def on_online(self, index: int) -> None:
        """Signer `index` is connected on both connections now."""

    def on_lost(self, index: int) -> None:
        """Signer `index` is not connected any more."""

    def on_report(self, index: int, report: wire.ReportBody) -> None:
        """A report of signer `index`."""

    def on_keys(self, index: int, page: relay.KeyPage) -> None:
        """A page of the certificates that signer `index` knows."""

    def on_key_added(self, index: int) -> None:
        """Signer `index` knows a certificate more."""


@dataclass(frozen=True)
class Absence:
    """Since when a signer is away (Unix time; None: since this process started), and why, as far as it is known."""

    since_s: float | None
    reason: str


class Session:
    """One life of a signer's two connections, since `since_s` (Unix time). `prss_epoch` follows what the enclave
    reports, `condition` what the signer tells of it."""

    def __init__(self, announced: relay.Announce, since_s: float) -> None:
        self.since_s = since_s
        self.condition: relay.Condition | None = None
        self.clock_ahead_s: int | None = None
        """By how much its host's clock was ahead of this one's when it told its condition."""
        self.enclave, self.signer_version = announced.enclave, announced.signer_version
        self.index = self.enclave.index
        self.prss_epoch = self.enclave.prss_epoch
        self.connections: dict[bool, Connection] = {}
        self.online = False
        """Whether both connections are announced."""
        self.links: set[int] = set()

    def add(self, connection: Connection, *, bulk: bool) -> None:
        """One of the two is announced."""
        self.connections[bulk] = connection
        self.online = len(self.connections) == 2

    @property
    def waiting(self) -> int:
        """Messages that wait to be written, on both connections."""
        return sum(connection.waiting for connection in self.connections.values())

    @property
    def policy_digest(self) -> bytes:
        """Of the policy in force, as far as it was told since the signer connected."""
        told = self.condition.policy if self.condition is not None else None
        return told.digest if told is not None and told.loaded_at_s else self.enclave.policy_digest

    def send(self, message: relay.Down, *, bulk: bool) -> None:
        """Queue a message on one connection, where it is there."""
        self.pass_on(wire.encode(message), bulk=bulk)

    def pass_on(self, encoded: bytes, *, bulk: bool) -> None:
        """As `send`, of what is encoded already."""
        connection = self.connections.get(bulk)
        if connection is not None:
            connection.send(encoded)

    @property
    def certificate_expires_s(self) -> float | None:
        """When the first of the TLS certificates that it showed ends, as Unix time."""
        ends = [one.certificate_expires_s for one in self.connections.values() if one.certificate_expires_s is not None]
        return min(ends, default=None)

    def end(self, code: WSCloseCode, reason: str) -> None:
        """Close both connections."""
        for connection in self.connections.values():
            connection.end(code, reason)


class Signers:
    """All sessions, at most one for each signer of the roster. `wall_clock`: Unix seconds."""

    def __init__(self, roster: Roster, changes: Changes, listener: Listener, wall_clock: Callable[[], float]) -> None:
        self._roster, self._changes, self._listener, self._wall_clock = roster, changes, listener, wall_clock
        self._sessions: dict[int, Session] = {}
        self.connected: Counter[int] = Counter()
        """How often each signer came online."""
        self._boots = {signer.index: Boots(signer.name) for signer in roster.signers}
        self._absences = {index: Absence(None, "") for index in roster.indices}
        self._online: tuple[int, ...] = ()
        # The newest order: what several are ordered is encoded once.
        self._ordered: tuple[wire.OrderBody | None, bytes] = (None, b"")
        # What `ready` has found out, until something changes.
        self._ready: dict[tuple[int, ...], bool] = {}

    # --- coming and going ---

    def join(self, announced: relay.Announce, connection: Connection, *, bulk: bool) -> Session:
        """A connection has announced itself: the other half of a session, or the first of a new one.

        The newest connection wins: where its half is taken, or the enclave is another one, the old session ends.
        Raises `Refused` where two enclaves announce themselves by turns: neither is admitted then.
        """
        enclave, index = announced.enclave, announced.enclave.index
        self._boots[index].check(enclave.boot_nonce)
        session = self._sessions.get(index)
        if session is not None and (bulk in session.connections or session.enclave.boot_nonce != enclave.boot_nonce):
            self.leave(session, "a newer connection of this signer has come")
            session = None
        if session is None:
            session = self._sessions[index] = Session(announced, self._wall_clock())
        session.add(connection, bulk=bulk)
        self._ready.clear()
        if session.online:
            try:
                self._boots[index].on_online(enclave.boot_nonce)
            except Refused as refusal:
                self.leave(session, refusal.reason)
                raise
            # The newer half says the newer epoch.
            session.prss_epoch = enclave.prss_epoch
            self.connected[index] += 1
            self._tell_online()
            self._listener.on_online(index)
            self._changes.notify()
        return session

    def leave(self, session: Session, reason: str, why: str | None = None) -> None:
        """A session ends, with both connections, which are told the `reason`; operators are shown `why`, where that
        is more. Once more for one that has ended does nothing."""
        session.end(WSCloseCode.GOING_AWAY, reason)
        if self._sessions.get(session.index) is not session:
            return
        del self._sessions[session.index]
        self._ready.clear()
        if session.online:
            self._absences[session.index] = Absence(self._wall_clock(), (why or reason)[:300])
            for other in self._sessions.values():
                other.links.discard(session.index)
            self._tell_online()
            self._listener.on_lost(session.index)
            self._changes.notify()

    def refused(self, name: str | None, reason: str) -> None:
        """A connection with the certificate of `name` was not admitted: that is why this signer is away."""
        for signer in self._roster.signers:
            if signer.name == name and self.session(signer.index) is None:
                since_s = self._absences[signer.index].since_s
                self._absences[signer.index] = Absence(since_s, f"refused: {reason[:300]}")

    def end_expired(self, now_s: float) -> None:
        """Nobody stays on a certificate that has ended: a renewed one is shown by a new connection."""
        for session in list(self._sessions.values()):
            if session.certificate_expires_s is not None and session.certificate_expires_s <= now_s:
                self.leave(session, "your certificate has expired: renew it", "its certificate has expired")

    def end_all(self, reason: str) -> None:
        """The coordinator stops."""
        for session in list(self._sessions.values()):
            session.end(WSCloseCode.GOING_AWAY, reason)

    def _tell_online(self) -> None:
        self._online = tuple(sorted(index for index, session in self._sessions.items() if session.online))
        online = relay.Online(self._online)
        for index in online.indices:
            self._sessions[index].send(online, bulk=False)

    # --- what passes ---

    def on_message(self, session: Session, message: relay.Up, *, bulk: bool) -> None:
        """A message of a session that has joined. Raises `Malformed` for one that is not due."""
        match message:
            case relay.Forward(receiver, data):
                target = self._sessions.get(receiver)
                if receiver == session.index:
                    raise wire.Malformed("a frame to the sender itself")
                # Who is away gets nothing: the channel between the enclaves notices by itself.
                if target is not None and target.online and session.online:
                    target.send(relay.Deliver(session.index, data), bulk=bulk)
            case relay.ReportUp(body):
                self._note(session, body)
                self._listener.on_report(session.index, body)
            case relay.Condition():
                session.condition = message
                session.clock_ahead_s = message.clock_s - int(self._wall_clock()) if message.clock_s else None
            case relay.KeyPage():
                self._listener.on_keys(session.index, message)
            case relay.KeyAdded():
                self._listener.on_key_added(session.index)
            case relay.Announce():
                raise wire.Malformed("announced twice on one connection")

    def _note(self, session: Session, report: wire.ReportBody) -> None:
        match report:
            case wire.LinkReport(peer, up, _):
                if up:
                    session.links.add(peer)
                else:
                    session.links.discard(peer)
                self._changed()
            case wire.SetupDone(_, epoch):
                session.prss_epoch = epoch
                self._changed()
            case _:
                pass

    def _changed(self) -> None:
        """Links or epochs have."""
        self._ready.clear()
        self._changes.notify()

    def order(self, index: int, body: wire.OrderBody) -> bool:
        """Send an order to signer `index`; False where it is away. Presigning goes on bulk (see `relay`)."""
        session = self._sessions.get(index)
        if session is None or not session.online:
            return False
        if body is not self._ordered[0]:
            self._ordered = (body, wire.encode(relay.OrderDown(body)))
        presigning = type(body) is wire.PresignOrder or (type(body) is wire.PrepareOrder and body.purpose == "presign")
        session.pass_on(self._ordered[1], bulk=presigning)
        return True

    def ask_keys(self, index: int, question: relay.KeysAfter) -> None:
        """Ask signer `index` for certificates, where it is there."""
        session = self._sessions.get(index)
        if session is not None:
            session.send(question, bulk=False)

    # --- what is known ---

    def online(self) -> tuple[int, ...]:
        """Indices of the signers that are connected on both connections, in order."""
        return self._online

    def session(self, index: int) -> Session | None:
        """What signer `index` has announced and reported; None while it is not connected on both connections."""
        session = self._sessions.get(index)
        return session if session is not None and session.online else None

    def policy_digest(self, index: int) -> bytes | None:
        """Of the policy of signer `index`, where it is online."""
        session = self.session(index)
        return None if session is None else session.policy_digest

    def absence(self, index: int) -> Absence:
        """Since when and why signer `index` was away the last time."""
        return self._absences[index]

    def linked(self, members: Iterable[int]) -> bool:
        """Whether these are online and every two of them have both reported their link up."""
        group = set(members)
        sessions = [self._sessions.get(index) for index in group]
        return all(
            session is not None and session.online and group - {session.index} <= session.links for session in sessions
        )

    def epochs(self, members: Iterable[int]) -> set[int]:
        """The PRSS epochs that these signers are at; 0 for one that is away or has none."""
        sessions = (self._sessions.get(index) for index in members)
        return {session.prss_epoch if session is not None else 0 for session in sessions}

    def ready(self, members: Iterable[int]) -> bool:
        """Whether these are linked and of one PRSS epoch: they can presign and sign together."""
        group = tuple(members)
        ready = self._ready.get(group)
        if ready is None:
            if len(self._ready) >= MAX_GROUPS:
                self._ready.clear()
            epochs = self.epochs(group)
            ready = self._ready[group] = self.linked(group) and len(epochs) == 1 and 0 not in epochs
        return ready

    def name(self, index: int) -> str:
        """The roster's name of signer `index`; empty for 0."""
        return self._roster.signer(index).name if index else ""
