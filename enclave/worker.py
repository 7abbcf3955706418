"""The presign worker: a process of its own inside the enclave's boundary, so that a batch never delays a signature.

Forked before the PKCS#11 module is loaded, fed over a socketpair. It gets sub-seeds and ceremony keys, never seeds,
key shares or the HSM. It runs SPEC 3.2 to 3.12 for several batches at once and returns whole batches, or verdicts. A
finished batch stays, without its contents, until the enclave ends it: another member may call it back (SPEC 0.9).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Annotated

import msgspec

from enclave.bodies import BodyLog
from enclave.channels.frames import CeremonyChannel, PeerKeys
from enclave.confine import Confinement
from enclave.crypto.curve import AFFINE_POINT_BYTES, SCALAR_BYTES, SECP256K1, Secp256k1
from enclave.errors import CallerError, KeymootError, LinkFault, PeerFault, Refused, Unavailable
from enclave.framing import Stream
from enclave.protocol import presign
from enclave.protocol.blame import Blame, Outcome, accountable
from enclave.protocol.blame_messages import BLAME_ROUNDS, MAX_PROOF_BYTES
from enclave.protocol.charges import Charge, Facts
from enclave.protocol.opening import Opener
from enclave.protocol.presign_material import SubSeeds
from enclave.protocol.presign_rules import PresignRules
from enclave.protocol.session import Session
from enclave.tasks import Task
from enclave.wire import (
    MAX_BATCH,
    MAX_PEER_FRAME_BYTES,
    Bytes32,
    Committee,
    RoundNumber,
    ShortText,
    Wire,
    decode,
    encode,
)
from policies.roster import Index

MAX_WORKER_MESSAGE_BYTES = MAX_BATCH * (SCALAR_BYTES + AFFINE_POINT_BYTES) + MAX_PEER_FRAME_BYTES
MAX_QUEUED_BYTES = 128 * 1024 * 1024
# Largest: the bodies of four rounds of 13 members and 16,384 presignatures.
MAX_CHARGE_BYTES = 48 * 1024 * 1024
CHARGE_PART_BYTES = 1024 * 1024
PROOF_ALLOWANCE_BYTES = 128 * 1024
_PR_SET_PDEATHSIG = 1

SubSeed = tuple[tuple[int, ...], Bytes32]


class Begin(Wire, frozen=True, tag=1):
    """Main → worker: run a batch. Secret throughout."""

    sid: Bytes32
    me: Index
    committee: Committee
    tolerate: int
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)]
    frame_secret: bytes
    peers: tuple[PeerKeys, ...]
    subset_seeds: tuple[SubSeed, ...]
    pair_seeds: tuple[SubSeed, ...]

    def __repr__(self) -> str:
        return "Begin(…)"


class Incoming(Wire, frozen=True, tag=2):
    """Main → worker: a ceremony frame for batch `sid`."""

    sid: Bytes32
    sender: Index
    frame: bytes


class End(Wire, frozen=True, tag=3):
    """Main → worker: give the batch up (deadline, link gone). Answered by `Failed`, unless that is under way."""

    sid: Bytes32
    reason: ShortText


class Outgoing(Wire, frozen=True, tag=1):
    """Worker → main: a frame for a peer."""

    sid: Bytes32
    receiver: Index
    frame: bytes


class Finished(Wire, frozen=True, tag=2):
    """Worker → main: a whole batch (secret), and the worker's CPU time of this boot so far."""

    sid: Bytes32
    inverse_shares: bytes
    points: bytes
    cpu_us: int

    def __repr__(self) -> str:
        return "Finished(…)"


class Charged(Wire, frozen=True, tag=4):
    """Worker → main: a part of an encoded charge of batch `sid`; `last` ends the charge. Before `Failed`."""

    sid: Bytes32
    data: Annotated[bytes, msgspec.Meta(max_length=CHARGE_PART_BYTES)]
    last: bool

    def __repr__(self) -> str:
        return "Charged(…)"


class Failed(Wire, frozen=True, tag=3):
    """Worker → main: no batch, or one that is done was called back. Fields as in `CeremonyFailed`."""

    sid: Bytes32
    kind: ShortText
    step: ShortText
    reason: ShortText
    culprits: tuple[Index, ...]
    suspects: tuple[Index, ...]
    round: RoundNumber = 0
    group: tuple[Index, ...] = ()


class Inquiring(Wire, frozen=True, tag=5):
    """Worker → main: batch `sid` has failed, and the members find out who it was (SPEC 0.9). At most once."""

    sid: Bytes32


ToWorker = Begin | Incoming | End
FromWorker = Outgoing | Finished | Failed | Charged | Inquiring


def proof_bytes(count: int) -> int:
    """The largest proof in a batch: a body of any of its rounds, and room for the rest of a frame (`WorkerRun`)."""
    return min(MAX_PROOF_BYTES, count * (SCALAR_BYTES + AFFINE_POINT_BYTES) + PROOF_ALLOWANCE_BYTES)


class _Run:
    """One batch under way, or done and still answered for."""

    def __init__(self, begin: Begin, curve: Secp256k1, emit: Callable[[bytes], None]) -> None:
        self._sid, self._emit = begin.sid, emit
        log = BodyLog(len(presign.ROUNDS) + len(BLAME_ROUNDS) + 1)
        self._channel = CeremonyChannel(begin.sid, begin.me, begin.frame_secret, begin.peers, frozenset(), log)
        self._session = Session(begin.sid, begin.me, begin.committee, presign.ROUNDS, self._transmit)
        sub_seeds = SubSeeds(dict(begin.subset_seeds), dict(begin.pair_seeds))
        rules = PresignRules(begin.count)
        # The second half of a libsodium key is the public one.
        frame_keys = {keys.peer: keys.frame_key for keys in begin.peers} | {begin.me: begin.frame_secret[32:]}
        facts = Facts(begin.sid, begin.committee, begin.tolerate, frame_keys, rules)
        opener = Opener(facts, rules, sub_seeds)
        self._blame = Blame(
            facts, self._session, log, self._transmit, opener, proof_bytes(begin.count), self._inquiring
        )
        routine = presign.presign(self._session, curve, begin.tolerate, begin.count, sub_seeds)
        self.task: Task[Outcome] = Task(accountable(routine, self._blame, self._deliver), self._ended)

    def receive(self, message: Incoming) -> None:
        try:
            round_number, content = self._channel.open(message.sender, message.frame)
        except LinkFault as fault:
            self.task.cancel(fault)
            return
        if round_number in BLAME_ROUNDS:
            self._blame.receive(message.sender, round_number)
        else:
            self._session.receive(message.sender, round_number, content)

    def missing(self) -> tuple[int, ...]:
        return self._session.missing()

    def _transmit(self, round_number: int, receivers: tuple[int, ...], private: bool, content: bytes) -> None:
        for receiver, frame in self._channel.seal(round_number, receivers, private, content):
            self._emit(encode(Outgoing(self._sid, receiver, frame)))

    def _inquiring(self) -> None:
        self._emit(encode(Inquiring(self._sid)))

    def _deliver(self, batch: presign.Batch) -> None:
        cpu_us = time.process_time_ns() // 1000
        self._emit(encode(Finished(self._sid, batch.inverse_shares, batch.points, cpu_us)))

    def _ended(self, task: Task[Outcome]) -> None:
        outcome = task.outcome
        if isinstance(outcome, Outcome):
            for charge in outcome.charges:
                self._emit_charge(charge)
            self._emit(encode(describe_outcome(self._sid, outcome, self._session.round)))
        elif isinstance(outcome, KeymootError):
            self._emit(encode(describe_failure(self._sid, outcome, self.missing(), self._session.round)))

    def _emit_charge(self, charge: Charge) -> None:
        data = encode(charge)
        if len(data) > MAX_CHARGE_BYTES:
            return
        for start in range(0, len(data), CHARGE_PART_BYTES):
            part, last = data[start : start + CHARGE_PART_BYTES], start + CHARGE_PART_BYTES >= len(data)
            self._emit(encode(Charged(self._sid, part, last)))


def describe_outcome(sid: bytes, outcome: Outcome, last_round: int) -> Failed:
    """How a verdict is told, or that there is none."""
    told = (outcome.step, outcome.reason[:500], outcome.culprits, outcome.silent, last_round, outcome.subset)
    return Failed(sid, "peer", *told)


def describe_failure(sid: bytes, error: KeymootError, missing: tuple[int, ...], last_round: int) -> Failed:
    """How a ceremony's error is told: its kind, whom it convicts and whom it merely waits for."""
    reason = str(error)[:500]
    if isinstance(error, PeerFault):
        return Failed(sid, "peer", error.step, error.reason[:500], error.culprits, (), last_round, error.subset)
    if isinstance(error, LinkFault):
        return Failed(sid, "link", "", error.reason[:500], (), (error.peer,) if error.peer else (), last_round)
    for kind, root in (("caller", CallerError), ("refused", Refused), ("unavailable", Unavailable)):
        if isinstance(error, root):
            return Failed(sid, kind, "", reason, (), (), last_round)
    return Failed(sid, "timeout", "", reason, (), missing, last_round)


def fork_worker(confinement: Confinement) -> socket.socket:
    """Fork the worker; returns the enclave's end of the socketpair. Call before the PKCS#11 module is loaded."""
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    if os.fork() == 0:
        ours.close()
        code = 1
        try:
            _die_with(parent)
            confinement.confine_worker()
            serve(theirs)
            code = 0
        except Exception as error:  # noqa: BLE001 - the edge of this process; the enclave ends with it
            sys.stderr.write(f"keymoot presign worker: {type(error).__name__}\n")
        finally:
            os._exit(code)
    theirs.close()
    return ours


class Worker:
    """All batches under way, without I/O: messages in through `handle`, out through `emit`."""

    def __init__(self, curve: Secp256k1, emit: Callable[[bytes], None]) -> None:
        self._curve, self._emit = curve, emit
        self._runs: dict[bytes, _Run] = {}

    def handle(self, message: ToWorker) -> None:
        """One message of the enclave's main process."""
        if isinstance(message, Begin):
            run = self._runs[message.sid] = _Run(message, self._curve, self._emit)
            run.task.start()
        elif (found := self._runs.get(message.sid)) is not None:
            if isinstance(message, Incoming):
                found.receive(message)
            else:
                found.task.cancel(KeymootError(message.reason))
        for sid in [sid for sid, run in self._runs.items() if run.task.ended]:
            del self._runs[sid]


def serve(sock: socket.socket) -> None:
    """The worker's loop: until the enclave closes its end."""
    stream = Stream(sock, MAX_QUEUED_BYTES, MAX_WORKER_MESSAGE_BYTES)
    sock.setblocking(True)
    SECP256K1.randomize(os.urandom(32))
    worker = Worker(SECP256K1, stream.write)
    with contextlib.suppress(EOFError):
        while True:
            for data in stream.read():
                worker.handle(decode(data, ToWorker))  # type: ignore[arg-type]


def _die_with(parent: int) -> None:
    """End with the enclave, however it ends, and leave its signals to it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if os.getppid() != parent:
        os._exit(1)
