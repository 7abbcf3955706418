"""A coordinator that does anything: thousands of random runs against whole enclaves, some hundreds in every check.

Whatever it does: no member ever uses a presignature for two messages, no two messages ever get everybody's shares
under one presignature (SPEC 4.5), no exception escapes, nobody is convicted (no signer cheats here), and afterwards an
honest coordinator gets a signature.
"""

from __future__ import annotations

import hashlib
import os
import random
from typing import Any

import msgspec
import pytest

from enclave import wire
from enclave.errors import CallerError
from tests.adversarial.conftest import COMMITTEE, make_net
from tests.adversarial.test_signing import only
from tests.fakes.enclaves import COORDINATOR, authorizations_of

STEPS = 30
BATCH = 8
MESSAGES = [hashlib.sha256(bytes([number])).digest() for number in range(3)]


class Hostile:
    """One run. Remembers all it has seen, and uses it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.net, self.client, _ = make_net()
        self.held: list[tuple[int, int, bytes]] = []
        self.authorizations: dict[int, list[wire.SignedAuthorization]] = {j: [] for j in COMMITTEE}
        self.nonces: list[wire.SignedNonce] = []
        self.sids: list[bytes] = []
        self.shares: dict[tuple[wire.PresignatureName, int], set[bytes]] = {}
        self.convicted: list[Any] = []
        self.net.start()
        assert sorted(self.net.setup()) == [1, 2, 3]
        self.key = self.net.keygen(self.client.create_key())[1].certificates[0][0].acknowledgement
        self.requests = [self.client.sign_hash(self.key.key_id, h) for h in MESSAGES]
        self.sids.append(self.net.presign(COMMITTEE, BATCH)[1].sid)
        self.net.drain()
        self.net.relay = self.relay

    # --- frames ---

    def relay(self, sender: int, receiver: int, data: bytes) -> list[tuple[int, int, bytes]]:
        frame = (sender, receiver, data)
        if self.rng.random() < 0.9:
            return [frame]
        self.held = [*self.held[-50:], frame]
        what = self.rng.choice(["drop", "repeat", "flip", "swap", "replay", "truncate", "hold"])
        if what == "repeat":
            return [frame, frame]
        if what == "flip":
            place = self.rng.randrange(len(data))
            return [
                (sender, receiver, data[:place] + bytes([data[place] ^ 1 << self.rng.randrange(8)]) + data[place + 1 :])
            ]
        if what == "swap":
            return [(self.rng.choice(COMMITTEE), self.rng.choice(COMMITTEE), data)]
        if what == "replay":
            return [frame, self.rng.choice(self.held)]
        if what == "truncate":
            return [(sender, receiver, data[: self.rng.randrange(len(data))])]
        return []

    # --- orders ---

    def step(self) -> None:
        """One thing a coordinator may do; then everything that follows from it."""
        self.rng.choice(
            [self.sign, self.sign, self.online, self.online, self.presign, self.flicker, self.release, self.abandon]
        )()
        self.net.run()
        self.note()

    def sign(self) -> None:
        """Mostly one new request and one presignature for all; else whatever there is, to each something else."""
        if self.rng.random() < 0.5:
            self.requests.append(self.client.sign_hash(self.key.key_id, self.rng.choice(MESSAGES)))
        common = wire.PresignatureName(self.sids[-1], self.rng.randint(1, BATCH))
        for j in COMMITTEE:
            name, request = common, self.requests[-1]
            if self.rng.random() < 0.15:
                name = wire.PresignatureName(self.rng.choice(self.sids), self.rng.randint(1, BATCH))
            if self.rng.random() < 0.15:
                request = self.rng.choice(self.requests)
            if self.rng.random() < 0.05:
                request = msgspec.structs.replace(request, body=request.body + b" ")
            self.order(j, wire.SignOrder(self.name(), self.key.key_id, request, COMMITTEE, name))

    def online(self) -> None:
        if all(self.authorizations.values()):
            for j in COMMITTEE:
                chosen = [self.rng.choice(self.authorizations[i][-4:]) for i in COMMITTEE]
                if self.rng.random() < 0.7:
                    chosen = [self.authorizations[i][-1] for i in COMMITTEE]
                self.order(j, wire.OnlineOrder(self.name(), self.key.key_id, tuple(chosen)))

    def presign(self) -> None:
        for j in COMMITTEE:
            self.order(j, wire.PrepareOrder(self.name(), "presign"))
        self.net.run()
        self.note()
        fresh = {nonce.index: nonce for nonce in self.nonces}
        if len(fresh) == len(COMMITTEE):
            for j in COMMITTEE:
                nonces = tuple(
                    fresh[i] if self.rng.random() < 0.9 else self.rng.choice([n for n in self.nonces if n.index == i])
                    for i in COMMITTEE
                )
                self.order(j, wire.PresignOrder(self.name(), COMMITTEE, BATCH, nonces))

    def flicker(self) -> None:
        """Somebody seems to be away for a moment, for some."""
        gone = self.rng.choice(COMMITTEE)
        seen = tuple(j for j in COMMITTEE if j != gone)
        for j in COMMITTEE:
            if self.rng.random() < 0.5:
                self.net.tell(j, wire.Presence(COORDINATOR, seen))
        self.net.run()
        self.net.presence(COMMITTEE)

    def release(self) -> None:
        """Frames that were held back arrive now."""
        for sender, receiver, data in self.rng.sample(self.held, min(len(self.held), 5)):
            self.net.tell(receiver, wire.PeerFrame(COORDINATOR, sender, data))

    def abandon(self) -> None:
        for j in COMMITTEE:
            self.order(j, wire.AbandonOrder(self.name()))

    def order(self, j: int, body: Any) -> None:
        if self.rng.random() < 0.95:
            self.net.order(j, body)
        if self.rng.random() < 0.1:
            self.net.order(j, body)

    def name(self) -> bytes:
        return self.rng.randbytes(1) * 16

    # --- what came of it ---

    def note(self) -> None:
        """Learn from the reports, and hold the invariant: a member uses a presignature once, so at most one message
        can have everybody's shares."""
        for j, reports in self.net.drain().items():
            for report in reports:
                if isinstance(report, wire.NonceReport):
                    self.nonces.append(report.nonce)
                elif isinstance(report, wire.Authorized):
                    self.authorizations[j].append(report.authorization)
                elif isinstance(report, wire.PresignDone):
                    self.sids.append(report.sid)
                elif isinstance(report, wire.CeremonyFailed) and report.culprits:
                    self.convicted.append(report)
        for member in self.net.members.values():
            for entry in member.audit:
                fact = msgspec.json.decode(entry.body)
                if fact["event"] == "share":
                    sid, number = fact["presignature"].split("/")
                    name = wire.PresignatureName(bytes.fromhex(sid), int(number))
                    self.shares.setdefault((name, member.index), set()).add(bytes.fromhex(fact["hash"]))
        assert all(len(messages) == 1 for messages in self.shares.values()), self.shares
        assert self.convicted == []

    def finish(self) -> None:
        """An honest coordinator takes over: everybody reconnects, and a signature comes out."""
        net = self.net
        net.relay = lambda sender, receiver, data: [(sender, receiver, data)]
        for j in COMMITTEE:
            net.tell(j, wire.Presence(COORDINATOR, ()))
        net.run()
        net.presence(COMMITTEE)
        net.run()
        net.advance(61)
        net.drain()
        sid = net.presign(COMMITTEE, 1)[1].sid
        request = self.client.sign_hash(self.key.key_id, hashlib.sha256(os.urandom(8)).digest())
        reports = net.authorise(request, self.key.key_id, COMMITTEE, wire.PresignatureName(sid, 1))
        only(net.online(authorizations_of(reports), self.key.key_id, COMMITTEE), wire.ShareReport)


def run(seed: int) -> int:
    """One run; how many shares were given in it."""
    hostile = Hostile(seed)
    for _ in range(STEPS):
        try:
            hostile.step()
        except CallerError as error:  # the one error a signer's message may end in: the connection closes
            raise AssertionError(f"seed {seed}: {error}") from error
    hostile.finish()
    return len(hostile.shares)


def test_many_runs() -> None:
    spent = sum(run(seed) for seed in range(100))
    assert spent > 180  # the runs do get to signatures


@pytest.mark.slow
def test_thousands_of_runs() -> None:
    assert sum(run(seed) for seed in range(1000, 5000)) > 7000


def test_the_invariant_can_fail() -> None:
    """A share for another message under the same presignature, planted in the audit chain, is seen."""
    hostile = Hostile(0)
    for h in MESSAGES[:2]:
        body = {"event": "share", "presignature": f"{'00' * 32}/1", "hash": h.hex()}
        entry = wire.AuditEntry(1, msgspec.json.encode(body), bytes(32), b"")
        hostile.net.members[1].audit.append(entry)
    with pytest.raises(AssertionError):
        hostile.note()
