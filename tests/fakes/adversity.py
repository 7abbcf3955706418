"""A network of real enclaves to which everything happens that may happen to one: crashes, restarts, copies, old disks,
replays, reordering, a coordinator that mixes what it has seen. Watches that no nonce ever serves two messages.

What a share is for is taken from the orders that were given, never from what the enclave says of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from enclave import wire
from enclave.crypto import polynomials
from enclave.crypto.bip32 import derive
from enclave.crypto.curve import SECP256K1
from enclave.errors import CallerError
from enclave.worker import FromWorker
from policies.acceptance import AcceptedState
from policies.requests import HashBatch, signature_batches_path
from tests.fakes.clients import TestClient, TestGate, open_policy
from tests.fakes.enclaves import COORDINATOR, Clock, Disk, Member, Net

MESSAGES = tuple(hashlib.sha256(bytes([number])).digest() for number in range(4))
KEPT = 60
BATCH = 4

Signed = wire.SignedAuthorization | wire.SignedBatchAuthorization


class WatchedNet(Net):
    """A network whose every report is shown to `on_report`. A signer whose output is `lost` says nothing to anybody."""

    lost: set[int]

    def _said(self, member: Member, message: Any) -> None:
        if id(member) in self.lost:
            return
        super()._said(member, message)
        if isinstance(message, wire.Report):
            self.on_report(member, message)

    def on_report(self, member: Member, report: wire.Report) -> None:
        """Set by the owner."""

    def run(self, most: int | None = None) -> None:
        """As `Net.run`, at most `most` messages. A signer that says what is not due is cut off and attaches again."""
        done = 0
        while self.queue and (most is None or done < most):
            j, message = self.queue.popleft()
            member = self.members[j]
            done += 1
            try:
                if isinstance(message, tuple):
                    member.core.batches.on_worker(wire.decode(message[1], FromWorker))
                else:
                    member.core.dispatch.handle(wire.decode(wire.encode(message), wire.ToEnclave))
            except CallerError:
                self.reattach(j)
            member.core.timers.fire()

    def reattach(self, j: int) -> None:
        """The signer process of `j` ends and starts again; its enclave runs on."""
        member = self.members[j]
        member.core.dispatch.on_detached()
        member.core.effects.attach(lambda message: self._said(member, message))
        self.attach(j)


@dataclass(frozen=True)
class Asked:
    """A client's request: its key, and the hashes with their paths (one, or those of a batch)."""

    request: wire.ClientRequest
    key: wire.Acknowledgement
    items: tuple[tuple[tuple[int, ...], bytes], ...]
    batch: bool


@dataclass(frozen=True)
class Use:
    """What a member was asked to give a share for: one item of all members' authorizations."""

    key: wire.Acknowledgement
    committee: tuple[int, ...]
    h: bytes
    path: tuple[int, ...]
    context: bytes


@dataclass
class Seen:
    """What the watcher keeps. `given`: of each member and presignature, what the shares that left were for."""

    given: dict[tuple[int, wire.PresignatureName], list[Use]] = field(default_factory=dict)
    shares: dict[Use, dict[int, tuple[bytes, bytes]]] = field(default_factory=dict)
    points: dict[bytes, Use] = field(default_factory=dict)
    decided: dict[int, set[tuple[str, str]]] = field(default_factory=dict)
    signatures: int = 0


class Adversity:
    """The network and what a hostile coordinator remembers of it. Every method is one thing that may happen."""

    def __init__(self, n: int = 3, t: int = 1) -> None:
        clock = Clock()
        self.client, self.gate = TestClient(clock), TestGate(clock)
        self.net = WatchedNet.__new__(WatchedNet)
        self.net.lost = set()
        self.net.on_report = self.on_report  # type: ignore[method-assign]
        self.net.__init__(open_policy(self.client), self.gate, self.gate.keys, n, t, clock=clock)  # type: ignore[misc]
        self.everybody = self.net.roster.indices
        self.size = 2 * t + 1
        self.epoch = 0
        self.seen = Seen()
        self.keys: list[wire.Acknowledgement] = []
        self.requests: list[Asked] = []
        self.names: list[tuple[tuple[int, ...], wire.PresignatureName]] = []
        self.authorizations: dict[int, list[Signed]] = {j: [] for j in self.everybody}
        self.orders: dict[bytes, tuple[Signed, ...]] = {}
        self.items: dict[bytes, tuple[wire.BatchItem, ...]] = {}
        self.disks: dict[int, list[Disk]] = {j: [] for j in self.everybody}
        self.copies: dict[int, list[Member]] = {j: [] for j in self.everybody}
        self.recorded: list[tuple[int, Any]] = []
        self.net.start()
        self.new_epoch()
        self.create_key()
        self.presign(tuple(self.everybody[: self.size]))

    # --- what honest clients and a coordinator do ---

    def settle(self) -> None:
        """Everything that is under way arrives."""
        self.net.run()
        self.net.drain()

    def new_epoch(self) -> None:
        """A network setup, where all are linked."""
        self.epoch += 1
        nonces = {}
        for j in self.everybody:
            self.net.order(j, wire.PrepareOrder(os.urandom(16), "setup"))
        self.net.run()
        for j, report in self.net.take(wire.NonceReport).items():
            nonces[j] = report.nonce
        if len(nonces) == len(self.everybody):
            for j in self.everybody:
                self.net.order(j, wire.SetupOrder(os.urandom(16), self.epoch, tuple(nonces[j] for j in sorted(nonces))))
        self.settle()

    def create_key(self) -> None:
        """A key, where all are linked."""
        nonces = self._nonces(self.everybody, "keygen")
        if nonces is None:
            return
        request = self.client.create_key(f"hot/{len(self.keys)}", len(self.everybody), self.net.roster.tolerate)
        for j in self.everybody:
            self.net.order(j, wire.KeygenOrder(os.urandom(16), (request,), nonces))
        self.net.run()
        activated = self.net.take(wire.KeysActivated)
        if len(activated) == len(self.everybody):
            self.keys.append(activated[1].certificates[0][0].acknowledgement)

    def presign(self, committee: tuple[int, ...]) -> None:
        """A batch of presignatures, where the committee is linked and of one epoch."""
        nonces = self._nonces(committee, "presign")
        if nonces is None:
            return
        for j in committee:
            self.net.order(j, wire.PresignOrder(os.urandom(16), committee, BATCH, nonces))
        self.net.run()
        done = self.net.take(wire.PresignDone)
        for sid in {report.sid for report in done.values()}:
            self.names += [(committee, wire.PresignatureName(sid, l)) for l in range(1, BATCH + 1)]

    def ask(self, message: int, path: int, batch: bool) -> None:
        """A client asks for a signature, or for two of one batch."""
        key, h = self.keys[message % len(self.keys)], MESSAGES[message % len(MESSAGES)]
        steps = ((), (path,))[path % 2]
        if batch:
            pairs = ((steps, h), ((7,), MESSAGES[(message + 1) % len(MESSAGES)]))
            body = HashBatch(tuple("0x" + h.hex() for _, h in pairs), os.urandom(8).hex(), tuple(p for p, _ in pairs))
            request = self.client.request(signature_batches_path(key.key_id), body)
            self.requests.append(Asked(request, key, pairs, batch=True))
        else:
            request = self.client.sign_hash(key.key_id, h, steps)
            self.requests.append(Asked(request, key, ((steps, h),), batch=False))

    def authorise(self, picks: list[tuple[int, int]], committee: tuple[int, ...]) -> None:
        """Sign orders: to each member its pick (from the newest) of the requests and of the committee's names."""
        names = [name for members, name in self.names if members == committee][-KEPT:]
        if not self.requests or len(names) < 2:
            return
        for j, (which, name) in zip(committee, picks, strict=False):
            asked = self.requests[-1 - which % min(len(self.requests), 4)]
            place = name % (len(names) - 1)
            self._sign_order(j, asked, committee, (names[place], names[place + 1]))
        self.net.run()

    def online(self, picks: list[list[int]], committee: tuple[int, ...]) -> None:
        """Online orders: to each member its picks, from the newest, of everybody's authorizations."""
        kinds = {type(self.authorizations[j][-1]) for j in committee if self.authorizations[j]}
        if len(kinds) != 1 or not all(self.authorizations[j] for j in committee):
            return
        for j, choice in zip(committee, picks, strict=False):
            chosen = tuple(
                self.authorizations[i][-1 - pick % min(len(self.authorizations[i]), 3)]
                for i, pick in zip(committee, choice, strict=False)
            )
            if len({type(each) for each in chosen}) == 1 and len(chosen) == len(committee):
                self._online_order(j, chosen)

    def held(self, committee: tuple[int, ...]) -> tuple[wire.PresignatureName, ...]:
        """Two names that everybody in the committee holds, not always the first, of a new batch if need be."""
        for _ in range(2):
            pools = [self.net.members[j].core.pool for j in committee]
            newest = [name for members, name in self.names[-KEPT:] if members == committee]
            held = [name for name in newest if all(pool.holds(name, committee, self.epoch) for pool in pools)]
            if len(held) > 1:
                return (held[0], held[1]) if len(held) % 2 else (held[-1], held[0])
            self.presign(committee)
        return ()

    def sign(self, committee: tuple[int, ...], message: int, batch: bool) -> None:
        """What an honest coordinator does."""
        if names := self.held(committee):
            self.ask(message, message, batch)
            for j in committee:
                self._sign_order(j, self.requests[-1], committee, names)
            self.net.run()
            self.online([[0] * len(committee)] * len(committee), committee)
            self.settle()

    def race(self, committee: tuple[int, ...], message: int, batch: bool, plan: list[int], crash: int | None) -> None:
        """Two requests authorised by everybody under one name, then online orders of both, in an order of its own for
        each member: its `plan` says which (0, 1), both, either first (2, 3), or the others' of the second with its own
        of the first (4). One member may die meanwhile."""
        names = self.held(committee)
        if not names:
            return
        both: list[list[Signed]] = []
        for number in (0, 1):
            self.ask(message + number, 0, batch and not number)
            for j in committee:
                self._sign_order(j, self.requests[-1], committee, names)
            self.net.run()
            asked = self.requests[-1].request.digest("testnet")
            told = [each for j in committee for each in self.authorizations[j][-1:]]
            both.append([each for each in told if each.authorization.terms.request_digest == asked])
        for j, which in zip(committee, plan, strict=False):
            if {len(each) for each in both} != {len(committee)}:
                break
            mixed = [both[i != j][place] for place, i in enumerate(committee)]
            for chosen in ((both[0],), (both[1],), both, both[::-1], (mixed, both[1]))[which]:
                if len({type(each) for each in chosen}) == 1:
                    self._online_order(j, tuple(chosen))
        if crash is not None and crash in committee:
            self.crash(crash, in_the_middle=True)
        self.settle()

    def refuse(self, member: int) -> None:
        """A gate says no from now on, until another does."""
        self.gate.decide = lambda j, request: (j != member, "not now")

    def abandon(self) -> None:
        """Attempts are given up."""
        for j in self.everybody:
            for ceremony in list(self.orders)[-3:]:
                self.net.order(j, wire.AbandonOrder(ceremony))

    # --- what happens to processes, disks and messages ---

    def crash(self, j: int, in_the_middle: bool) -> None:
        """Kill -9 of an enclave, or of the whole machine while it works: what it says meanwhile reaches nobody."""
        if in_the_middle:
            self.net.lost.add(id(self.net.members[j]))
            self.net.run()
        self.net.queue = type(self.net.queue)(each for each in self.net.queue if each[0] != j)
        self.net.reboot(j)
        self._back()

    def restart_signer(self, j: int) -> None:
        """The signer process alone ends and starts again."""
        self.net.reattach(j)
        self._back()

    def copy_disk(self, j: int) -> None:
        """Somebody keeps a copy of a disk."""
        self.disks[j] = [*self.disks[j][-3:], self.net.copy_disk(j)]

    def restore_disk(self, j: int, which: int, accepted: bool) -> None:
        """An old disk is put back; the operators of the others may take it."""
        if self.disks[j]:
            self.net.reboot(j, self.disks[j][which % len(self.disks[j])])
            self._back()
            if accepted:
                self.accept(j)

    def accept(self, j: int) -> None:
        """The operators of all others accept the state with which `j` has started."""
        core = self.net.members[j].core
        word = AcceptedState(f"signer-{j}", core._audit.at_boot.version, core._session.boot_nonce.hex()[:16])
        for i in self.everybody:
            self.net.accepted[i] = (*self.net.accepted.get(i, ())[-20:], word)
        self.pass_time(61)

    def start_copy(self, j: int) -> None:
        """A copy of a signer takes its place, which runs on unseen."""
        self.copies[j] = [*self.copies[j][-1:], self.net.start_copy(j, self.net.copy_disk(j))]

    def swap_copy(self, j: int) -> None:
        """A signer that runs unseen is online again, in place of the one that is."""
        if self.copies[j]:
            self.copies[j].append(self.net.put_in(self.copies[j].pop(0)))

    def replay(self, picks: list[int]) -> None:
        """Messages that any enclave was ever told are told again."""
        for pick in picks:
            if self.recorded:
                self.net.queue.append(self.recorded[pick % len(self.recorded)])

    def reorder(self, seed: int, most: int) -> None:
        """What is under way arrives in another order, and only some of it now."""
        waiting = sorted(self.net.queue, key=lambda each: hashlib.sha256(bytes([seed]) + repr(each).encode()).digest())
        self.net.queue = type(self.net.queue)(waiting)
        self.net.run(most)

    def flicker(self, j: int) -> None:
        """A signer seems to be away for a moment."""
        self.net.presence(tuple(i for i in self.everybody if i != j))
        self._back()

    def pass_time(self, seconds: int) -> None:
        """Time passes."""
        self.record()
        self.net.advance(seconds)

    def record(self) -> None:
        """Keep some of what is under way, for replays."""
        orders = [each for each in self.net.queue if not isinstance(each[1], tuple | wire.Attach | wire.Stored)]
        self.recorded = [*self.recorded, *orders][-4 * KEPT :]

    def _back(self) -> None:
        self.net.presence(self.everybody)
        self.net.run()

    def _nonces(self, members: tuple[int, ...], purpose: str) -> tuple[wire.SignedNonce, ...] | None:
        for j in members:
            self.net.order(j, wire.PrepareOrder(os.urandom(16), purpose))
        self.net.run()
        found = self.net.take(wire.NonceReport)
        return tuple(found[j].nonce for j in members) if set(members) <= set(found) else None

    def _sign_order(
        self, j: int, asked: Asked, committee: tuple[int, ...], names: tuple[wire.PresignatureName, ...]
    ) -> None:
        ceremony, key_id = os.urandom(16), asked.key.key_id
        if asked.batch:
            items = tuple(wire.BatchItem(path, h, name) for (path, h), name in zip(asked.items, names, strict=True))
            self.items[wire.batch_items_digest(items)] = items
            self.net.order(j, wire.BatchSignOrder(ceremony, key_id, asked.request, committee, names))
        else:
            self.net.order(j, wire.SignOrder(ceremony, key_id, asked.request, committee, names[0]))
        self.record()

    def _online_order(self, j: int, chosen: tuple[Signed, ...]) -> None:
        ceremony, key_id = os.urandom(16), chosen[0].authorization.terms.key_id
        self.orders[ceremony] = chosen
        if isinstance(chosen[0], wire.SignedBatchAuthorization):
            self.net.order(j, wire.BatchOnlineOrder(ceremony, key_id, chosen))  # type: ignore[arg-type]
        else:
            self.net.order(j, wire.OnlineOrder(ceremony, key_id, chosen))  # type: ignore[arg-type]
        self.record()

    # --- what must hold ---

    def on_report(self, member: Member, report: wire.Report) -> None:
        """Every report that leaves a signer: learn from it, and hold what must hold of it."""
        j, body = member.index, report.body
        for entry in report.audit:
            fact = json.loads(entry.body)
            if fact["event"] == "authorized":
                self.seen.decided.setdefault(j, set()).add((fact["request"], fact.get("hash") or fact["items"]))
        if isinstance(body, wire.Authorized | wire.BatchAuthorized):
            self.authorizations[j].append(body.authorization)
        elif isinstance(body, wire.ShareReport):
            self._on_shares(j, report, body.ceremony, [(body.r_point, body.s)])
        elif isinstance(body, wire.BatchShareReport):
            self._on_shares(j, report, body.ceremony, list(zip(body.r_points, body.s, strict=True)))
        elif isinstance(body, wire.CeremonyFailed):
            assert body.culprits == (), f"signer {j} convicted {body.culprits}, and nobody cheats: {body}"

    def _on_shares(self, j: int, report: wire.Report, ceremony: bytes, shares: list[tuple[bytes, bytes]]) -> None:
        signed = self.orders[ceremony]
        terms = [each.authorization.terms for each in signed]
        assert all(each == terms[0] for each in terms), f"signer {j} gave a share although others authorised otherwise"
        own = terms[0]
        what = own.h if isinstance(own, wire.AuthorizationTerms) else own.items
        # No share without its decision, in the chain before it and with it.
        (entry,) = report.audit
        fact = json.loads(entry.body)
        assert fact["event"] == "share"
        assert (fact["request"], fact.get("hash") or fact["items"]) == (own.request_digest.hex(), what.hex())
        assert (own.request_digest.hex(), what.hex()) in self.seen.decided[j]
        context = hashlib.sha256(b"".join(wire.encode(each.authorization) for each in signed)).digest()
        key = next(key for key in self.keys if key.key_id == own.key_id)
        if isinstance(own, wire.AuthorizationTerms):
            uses = [(own.presignature, own.h, own.path)]
        else:
            uses = [(item.presignature, item.h, item.path) for item in self.items[own.items]]
        assert len(shares) == len(uses)
        for (name, h, path), (point, s) in zip(uses, shares, strict=True):
            self._on_share(j, name, Use(key, own.committee, h, path, context), point, s)

    def _on_share(self, j: int, name: wire.PresignatureName, use: Use, point: bytes, s: bytes) -> None:
        given = self.seen.given.setdefault((j, name), [])
        given.append(use)
        assert len(given) == 1, f"signer {j} used one presignature twice: {name}, {given}"
        assert self.seen.points.setdefault(point, use) == use, "one nonce point for two signatures"
        of_all = self.seen.shares.setdefault(use, {})
        of_all[j] = (point, s)
        if len(of_all) == len(use.committee):
            self._verify(use, of_all)
            self.seen.signatures += 1

    def _verify(self, use: Use, shares: dict[int, tuple[bytes, bytes]]) -> None:
        assert len({point for point, _ in shares.values()}) == 1
        r = SECP256K1.x_mod_q(next(iter(shares.values()))[0])
        s = polynomials.interpolate({j: int.from_bytes(s, "big") for j, (_, s) in shares.items()}, SECP256K1.q)
        public, _ = derive(use.key.public_key, use.key.chain_code, use.path)
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public)
        key.verify(utils.encode_dss_signature(r, s), use.h, ec.ECDSA(utils.Prehashed(hashes.SHA256())))

    def recover(self) -> bool:
        """An honest coordinator takes over, operators stop copies and accept what they must: does it sign again?"""
        self.gate.decide = lambda j, request: (True, "")
        self.net.lost.clear()
        for j in self.everybody:
            self.net.tell(j, wire.Presence(COORDINATOR, ()))
        self.settle()
        for j in self.everybody:
            self.net.reboot(j)
            self._back()
            self.accept(j)
        self.new_epoch()
        committee = tuple(self.everybody[: self.size])
        before = self.seen.signatures
        self.presign(committee)
        self.ask(0, 0, batch=False)  # of the first key: no disk is older
        names = [name for members, name in self.names if members == committee][-BATCH:]
        for j in committee:
            self._sign_order(j, self.requests[-1], committee, (names[0],))
        self.net.run()
        self.online([[0] * self.size] * self.size, committee)
        self.net.run()
        return self.seen.signatures == before + 1
