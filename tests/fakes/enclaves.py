"""Whole enclaves in memory: the real code behind a software HSM, a signer that stores, a gate that answers, and a
coordinator that relays. Tests replace one of them by something hostile.

Nothing here waits: `Net.run` moves messages until nothing is left to move.
"""

from __future__ import annotations

import base64
import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave import wire
from enclave.assembly import EnclaveCore, Outside
from enclave.config import EnclaveConfig, EnclaveFile, GateConfig
from enclave.crypto.curve import SECP256K1
from enclave.freezes import FreezeState
from enclave.gate_keys import GateKeys
from enclave.hsm import HsmAway, HsmConfig, SealBroken
from enclave.log import Log
from enclave.secret import Secret
from enclave.tasks import Promise
from enclave.worker import FromWorker, ToWorker, Worker
from policies.acceptance import AcceptedState
from policies.errors import CallerError
from policies.model import Policy
from policies.roster import Roster, RosterSigner
from policies.signed_requests import claimed_name

COORDINATOR = "main"


class SoftwareHsm:
    """An HSM for tests: the same interface, keys in memory."""

    def __init__(self) -> None:
        self._identity = ec.generate_private_key(ec.SECP256R1())
        self._sealing = AESGCM(os.urandom(32))
        self.calls = 0
        self.away = False

    @property
    def identity_point(self) -> bytes:
        numbers = self._identity.public_key().public_numbers()
        return b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")

    def sign(self, digest32: bytes) -> bytes:
        self.calls += 1
        der = self._identity.sign(digest32, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        r, s = utils.decode_dss_signature(der)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def seal(self, context: Any, plaintext: bytes | Secret) -> bytes:
        self.calls += 1
        nonce = os.urandom(12)
        data = plaintext.reveal() if isinstance(plaintext, Secret) else plaintext
        return nonce + self._sealing.encrypt(nonce, data, repr(context).encode())

    def unseal(self, context: Any, sealed: bytes) -> Secret:
        self.calls += 1
        try:
            return Secret(self._sealing.decrypt(sealed[:12], sealed[12:], repr(context).encode()))
        except InvalidTag:
            raise SealBroken("altered, or another record's") from None


class Clock:
    """Both clocks, moved by the test."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


class FreezeMemory:
    """What an enclave keeps of freezes; `broken`: it cannot be written."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.broken = False

    def read(self) -> bytes | None:
        return self.data

    def write(self, data: bytes) -> None:
        if self.broken:
            raise CallerError("the disk is full")
        self.data = data


@dataclass
class Member:
    """One signer: its enclave, HSM, worker and store."""

    index: int
    hsm: SoftwareHsm
    core: EnclaveCore
    store: dict[tuple[str, str], wire.Record]
    logged: list[str]
    said: list[Any] = field(default_factory=list)
    audit: list[wire.AuditEntry] = field(default_factory=list)
    gate_calls: list[wire.CallGate] = field(default_factory=list)
    answers: dict[bytes, wire.Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class Disk:
    """A copy of a signer's store: its sealed records and its audit chain."""

    records: dict[tuple[str, str], wire.Record]
    audit: tuple[wire.AuditEntry, ...]


GateAnswer = Callable[[int, wire.CallGate], wire.GateReply | wire.GateUnreachable | None]
Relay = Callable[[int, int, bytes], list[tuple[int, int, bytes]]]


class Net:
    """`n` enclaves joined by an in-memory coordinator. `relay(sender, receiver, data)` says what is delivered."""

    def __init__(
        self,
        policy: Policy,
        gate: GateAnswer,
        gate_keys: GateKeys | None,
        n: int = 3,
        t: int = 1,
        gate_mode: str = "signed",
        gate_options: dict[str, Any] | None = None,
        rosters: dict[int, Callable[[Roster], Roster]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        # By how much all wall clocks are set forward of it, and single ones; what single ones' hellos say beyond that.
        self.wall_set_by_s = 0.0
        self.own_set_by_s: dict[int, float] = {}
        self.lies_s: dict[int, float] = {}
        # By how much the kernels of single ones have slewed their clocks.
        self.slewed_s: dict[int, float] = {}
        self.policy, self.gate, self.gate_keys, self.gate_mode = policy, gate, gate_keys, gate_mode
        self.gate_options = gate_options or {}
        self.relay: Relay = lambda sender, receiver, data: [(sender, receiver, data)]
        self.queue: deque[tuple[int, Any]] = deque()
        self.reports: dict[int, list[Any]] = {j: [] for j in range(1, n + 1)}
        self.frames: list[tuple[int, int, bytes]] = []
        # Other coordinators than the one, by name; and what the signer processes store.
        self.via: dict[str, Callable[[int, Any], None]] = {}
        self.stores: Callable[[int, wire.Store], bool] = lambda j, message: True
        self.accepted: dict[int, tuple[AcceptedState, ...]] = {}
        # What each enclave keeps of freezes; policies of single signers, also after a reload; how files are read again.
        self.freeze_stores: dict[int, FreezeMemory] = {}
        self.unkept_freezes: dict[int, FreezeState | None] = {}
        self.policies: dict[int, Policy] = {}
        self.reread: Callable[[EnclaveConfig], EnclaveConfig] = lambda config: config.with_policy(
            config.file, self.policies.get(config.index, self.policy)
        )
        hsms = {j: SoftwareHsm() for j in range(1, n + 1)}
        self.roster = Roster(
            version=1,
            network="testnet",
            tolerate=t,
            signers=tuple(
                RosterSigner(j, f"signer-{j}", "Tests", base64.b64encode(hsm.identity_point).decode())
                for j, hsm in hsms.items()
            ),
        )
        self.members: dict[int, Member] = {}
        for j, hsm in hsms.items():
            change = (rosters or {}).get(j, lambda roster: roster)
            self.members[j] = self._boot(j, hsm, {}, change(self.roster))

    def wall(self) -> float:
        """What everybody's wall clock says; `clock` is the time that has passed."""
        return self.clock() + self.wall_set_by_s

    def wall_of(self, j: int) -> float:
        """What the wall clock of signer `j` says."""
        return self.wall() + self.own_set_by_s.get(j, 0.0)

    # --- processes ---

    def _boot(self, j: int, hsm: SoftwareHsm, store: dict[tuple[str, str], wire.Record], roster: Roster) -> Member:
        file = EnclaveFile(
            "testnet",
            f"signer-{j}",
            "",
            "",
            "",
            HsmConfig("x", "file:x", "x"),
            GateConfig(self.gate_mode, **self.gate_options),
        )  # type: ignore[arg-type]
        config = EnclaveConfig(file, roster, self.policies.get(j, self.policy), j, file.hsm, *[Path()] * 4)
        worker_queue: deque[bytes] = deque()
        worker = Worker(SECP256K1, worker_queue.append)

        def to_worker(message: bytes) -> None:
            worker.handle(wire.decode(message, ToWorker))
            while worker_queue:
                self.queue.append((j, ("worker", worker_queue.popleft())))

        def on_hsm(job: Callable[[Any], object]) -> Promise[object]:
            promise: Promise[object] = Promise()
            if hsm.away:
                promise.reject(HsmAway("the HSM was pulled out", "put it back"))
                return promise
            try:
                promise.resolve(job(hsm))
            except SealBroken as error:
                promise.reject(error)
            return promise

        logged: list[str] = []
        outside = Outside(
            wall_clock=lambda: self.wall_of(j),
            clock=self.clock,
            random=os.urandom,
            on_hsm=on_hsm,
            hsm_state=lambda: ("hsm-away", "the HSM was pulled out") if hsm.away else ("ready", ""),
            to_worker=to_worker,
            log=Log("enclave", write=logged.append),
            accepted=lambda: self.accepted.get(j, ()),
            freezes=self.freeze_stores.setdefault(j, FreezeMemory()),
            reload=lambda: self.reread(config),
            unkept_freezes=self.unkept_freezes.pop(j, None),
            slewed=lambda: self.slewed_s.get(j, 0.0),
        )
        core = EnclaveCore(config, lambda: self.gate_keys, outside)
        member = Member(j, hsm, core, store, logged)
        core.effects.attach(lambda message: self._said(member, message))
        told = replace(core._links._identity, wall=lambda: self.wall_of(j) + self.lies_s.get(j, 0.0))
        core._links._identity = told
        return member

    def reboot(self, j: int, disk: Disk | None = None) -> None:
        """Kill the enclave of signer `j` and start it again, with its disk or an older copy of it."""
        disk, answers = disk or self.copy_disk(j), self.members[j].answers
        self.presence(tuple(i for i in self.members if i != j))
        self.members[j] = self._boot(j, self.members[j].hsm, dict(disk.records), self.roster)
        self.members[j].audit = list(disk.audit)
        self.members[j].answers = dict(answers)
        self.attach(j)

    def drop_memory(self, j: int) -> None:
        """The process of enclave `j` goes on, with a new core: its memory is in doubt."""
        self.unkept_freezes[j] = self.members[j].core.unkept_freezes
        self.reboot(j)

    def start_copy(self, j: int, disk: Disk) -> Member:
        """Start another enclave of signer `j` on a copy of its disk and HSM; it is online in place of the first one,
        which goes on running unseen. Returns the first one, for `put_in`."""
        running = self.members[j]
        self.presence(tuple(i for i in self.members if i != j))
        self.run()
        self.members[j] = self._boot(j, running.hsm, dict(disk.records), self.roster)
        self.members[j].audit = list(disk.audit)
        self.attach(j)
        self.presence(tuple(self.members))
        self.run()
        return running

    def put_in(self, member: Member) -> Member:
        """Let a running enclave be online in place of the one that is; returns that one."""
        other, self.members[member.index] = self.members[member.index], member
        self.presence(tuple(i for i in self.members if i != member.index))
        self.tell(member.index, wire.Presence(COORDINATOR, ()))
        self.run()
        self.presence(tuple(self.members))
        self.run()
        return other

    def copy_disk(self, j: int) -> Disk:
        """A copy of the store of signer `j` as it is now."""
        return Disk(dict(self.members[j].store), tuple(self.members[j].audit))

    def attach(self, j: int) -> None:
        """The signer process of `j` attaches."""
        member = self.members[j]
        head = member.audit[-1] if member.audit else None
        seq, last = (head.seq, head.hash) if head else (0, bytes(32))
        prss, peers = member.store.get(("prss", "prss")), member.store.get(("peers", "peers"))
        parts = [member.store.get(("counters", f"counters-{part}")) for part in range(wire.MAX_COUNTER_RECORDS)]
        counters = tuple(part for part in parts if part is not None)
        self.tell(j, wire.Attach(wire.PROTOCOL_VERSION, "test", prss, peers, seq, last, counters))

    def start(self) -> None:
        """All attach, all are online."""
        for j in self.members:
            self.attach(j)
        self.presence(tuple(self.members))
        self.run()

    def presence(self, online: tuple[int, ...]) -> None:
        """Tell everybody that is online who else is."""
        for j in online:
            self.tell(j, wire.Presence(COORDINATOR, online))

    # --- messages ---

    def tell(self, j: int, message: Any) -> None:
        """Queue a message for the enclave of `j`, as its signer would say it."""
        self.queue.append((j, message))

    def order(self, j: int, body: Any, coordinator: str = COORDINATOR) -> None:
        """Queue an order for the enclave of `j`, with the record its signer would attach."""
        key_id = getattr(body, "key_id", None)
        record = self.members[j].store.get(("key", key_id)) if key_id else None
        self.tell(j, wire.Order(coordinator, body, record, self.answer(j, body)))

    def answer(self, j: int, body: Any) -> wire.Answer | None:
        """What the store of `j` keeps under the name of an order's request."""
        (request,) = getattr(body, "requests", (getattr(body, "request", None),))
        name = request and claimed_name("testnet", request.jws, request.body)
        return self.members[j].answers.get(name) if name else None

    def run(self) -> None:
        """Deliver until nothing is left. Every message passes the codec, as on the socket."""
        while self.queue:
            j, message = self.queue.popleft()
            member = self.members[j]
            if isinstance(message, tuple):
                member.core.batches.on_worker(wire.decode(message[1], FromWorker))
            else:
                member.core.dispatch.handle(wire.decode(wire.encode(message), wire.ToEnclave))
            member.core.timers.fire()

    def advance(self, seconds: float) -> None:
        """Let time pass, fire what is due, deliver what follows."""
        self.clock.now_s += seconds
        for member in self.members.values():
            member.core.timers.fire()
        self.run()

    def _said(self, member: Member, message: Any) -> None:
        j = member.index
        message = wire.decode(wire.encode(message), wire.FromEnclave)
        member.said.append(message)
        if isinstance(message, wire.ToPeer):
            self.frames.append((j, message.receiver, message.data))
            tell = self.via.get(message.coordinator, self.tell)
            for sender, receiver, data in self.relay(j, message.receiver, message.data):
                tell(receiver, wire.PeerFrame(message.coordinator, sender, data))
        elif isinstance(message, wire.Report):
            member.audit.extend(message.audit)
            if message.kept is not None:
                member.answers[message.kept.name] = wire.Answer(message.kept, message.body)
            self.reports[j].append(message.body)
        elif isinstance(message, wire.Audit):
            member.audit.extend(message.entries)
        elif isinstance(message, wire.Store):
            if self.stores(j, message):
                for record in message.records:
                    member.store[record.kind, record.name] = record
                self.tell(j, wire.Stored(message.ticket))
        elif isinstance(message, wire.WantAudit):
            self.tell(j, wire.AuditPage(tuple(member.audit[message.after : message.after + wire.MAX_AUDIT_ENTRIES])))
        elif isinstance(message, wire.CallGate):
            member.gate_calls.append(message)
            answer = self.gate(j, message)
            if answer is not None:
                self.tell(j, answer)

    # --- an honest coordinator's ceremonies ---

    def take(self, kind: type[Any], members: tuple[int, ...] = ()) -> dict[int, Any]:
        """The last report of `kind` from each member that made one; clears all reports.

        `members`: from whom one is expected, for networks that have to wait.
        """
        found = {}
        for j, reports in self.reports.items():
            matching = [report for report in reports if isinstance(report, kind)]
            if matching:
                found[j] = matching[-1]
            reports.clear()
        return found

    def nonces(self, members: tuple[int, ...], purpose: str) -> tuple[wire.SignedNonce, ...]:
        """Fresh nonces of `members`."""
        for j in members:
            self.order(j, wire.PrepareOrder(os.urandom(16), purpose))
        self.run()
        reports = self.take(wire.NonceReport, members)
        return tuple(reports[j].nonce for j in members)

    def setup(self, epoch: int = 1) -> dict[int, Any]:
        """PRSS setup; the `SetupDone` reports."""
        nonces = self.nonces(self.roster.indices, "setup")
        for j in self.members:
            self.order(j, wire.SetupOrder(b"setup-ceremony--", epoch, nonces))
        self.run()
        return self.take(wire.SetupDone, self.roster.indices)

    def keygen(self, request: wire.ClientRequest) -> dict[int, Any]:
        """Key generation for one request; the `KeysActivated` reports."""
        nonces = self.nonces(self.roster.indices, "keygen")
        for j in self.members:
            self.order(j, wire.KeygenOrder(os.urandom(16), (request,), nonces))
        self.run()
        return self.take(wire.KeysActivated, self.roster.indices)

    def presign(self, committee: tuple[int, ...], count: int) -> dict[int, Any]:
        """A batch; the `PresignDone` reports."""
        nonces = self.nonces(committee, "presign")
        for j in committee:
            self.order(j, wire.PresignOrder(os.urandom(16), committee, count, nonces))
        self.run()
        return self.take(wire.PresignDone, committee)

    def authorise(
        self,
        requests: wire.ClientRequest | dict[int, wire.ClientRequest],
        key_id: str,
        committee: tuple[int, ...],
        names: wire.PresignatureName | dict[int, wire.PresignatureName],
        after: bytes | None = None,
        coordinator: str = COORDINATOR,
    ) -> dict[int, list[Any]]:
        """Sign orders to the committee (one request for all, or one each); everybody's reports."""
        ceremony = os.urandom(16)
        for j in committee:
            request = requests[j] if isinstance(requests, dict) else requests
            name = names[j] if isinstance(names, dict) else names
            self.order(j, wire.SignOrder(ceremony, key_id, request, committee, name, after), coordinator)
        self.run()
        return self.drain()

    def online(
        self, authorizations: tuple[wire.SignedAuthorization, ...], key_id: str, committee: tuple[int, ...]
    ) -> dict[int, list[Any]]:
        """Online orders to the committee; everybody's reports."""
        for j in committee:
            self.order(j, wire.OnlineOrder(b"online-ceremony-", key_id, authorizations))
        self.run()
        return self.drain()

    def drain(self) -> dict[int, list[Any]]:
        """All reports since the last time, by member."""
        reports = {j: list(found) for j, found in self.reports.items()}
        for found in self.reports.values():
            found.clear()
        return reports


def authorizations_of(reports: dict[int, list[Any]]) -> tuple[wire.SignedAuthorization, ...]:
    """The authorizations among `reports`, by index."""
    return tuple(
        report.authorization for j in sorted(reports) for report in reports[j] if isinstance(report, wire.Authorized)
    )


def json_body(struct: Any) -> bytes:
    """A request body as a client writes it."""
    return json.dumps(msgspec.to_builtins(struct)).encode()
