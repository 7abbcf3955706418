"""None of the enclaves' own secrets is in anything that leaves an enclave: messages, stored records, audit, log."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from enclave import wire
from enclave.peers import PeersRecord
from enclave.protocol.setup import Seeds
from enclave.shares import KeyRecord
from enclave.worker import Begin, Worker
from tests.adversarial.conftest import COMMITTEE, make_net
from tests.fakes.clients import TestClient, TestGate
from tests.fakes.enclaves import Member, Net, SoftwareHsm, authorizations_of
from tests.fakes.leaks import KnownSecret, Leak, leaks

BATCH = 8
SCALAR_BYTES = 32


@dataclass
class Watched:
    """What the enclaves of a run held, by kind, and what left them."""

    sealed: list[bytes] = field(default_factory=list)
    begun: list[Begin] = field(default_factory=list)
    secrets: dict[str, set[bytes]] = field(default_factory=dict)
    left: list[tuple[str | Path, bytes]] = field(default_factory=list)

    def keep(self, kind: str, *values: bytes) -> None:
        """Note secrets of a kind."""
        self.secrets.setdefault(kind, set()).update(values)

    @property
    def known(self) -> list[KnownSecret]:
        """All of them, as the scanner takes them."""
        return [KnownSecret(kind, value) for kind, values in self.secrets.items() for value in values]


def keep_memory(seen: Watched, member: Member) -> None:
    """The secrets in an enclave's memory now."""
    core: Any = member.core
    # The second half of a libsodium key is the public one.
    seen.keep("frame secret", core._session.frame_secret[:32])
    seen.keep("link key", *(link.key for link in core._links._links.values()))
    for batch in core.pool._batches.values():
        shares = bytes(batch.inverse_shares)
        assert len(shares) == BATCH * SCALAR_BYTES
        seen.keep("presignature share", *(shares[i : i + SCALAR_BYTES] for i in range(0, len(shares), SCALAR_BYTES)))
    if core._prss.epoch:
        seen.keep("PRSS seed", *core._prss._current().seeds)
        online = core._prss.online_seeds(COMMITTEE)
        assert set(online.values()) <= seen.secrets["PRSS seed"]
    seen.keep("identity key", member.hsm._identity.private_numbers().private_value.to_bytes(32, "big"))


def keep_left(seen: Watched, member: Member) -> None:
    """All that left an enclave: to the signer's socket, to the store, into the audit chain, onto standard error."""
    core: Any = member.core
    name = f"signer-{member.index}"
    for message in member.said:
        seen.left += [(f"{name} said", wire.encode(message)), (f"{name} said, shown", repr(message).encode())]
    seen.left += [(f"{name} audit", wire.encode(entry)) for entry in member.audit]
    seen.left += [(f"{name} store", wire.encode(record)) for record in member.store.values()]
    seen.left += [(f"{name} log", "\n".join(member.logged).encode())]
    # What a traceback or a log of the object itself would show.
    parts = (core, core._session, core._prss, core._links, core._links._links, core.pool, core._authoriser)
    seen.left += [(f"{name} parts", "\n".join(map(repr, parts)).encode())]
    seen.left += [(f"{name} status", wire.encode(core.status()))]


def keep_sealed(seen: Watched) -> None:
    """What is secret in the records that were sealed: nothing in those of what was seen of peers."""
    for plaintext in seen.sealed:
        record = decode_any(plaintext, KeyRecord, Seeds, PeersRecord)
        if isinstance(record, KeyRecord):
            seen.keep("key share", record.share)
        elif isinstance(record, Seeds):
            seen.keep("PRSS seed", *record.seeds)


def decode_any(data: bytes, *kinds: type[wire.Wire]) -> wire.Wire:
    """`data` as the first of these that it is."""
    for kind in kinds:
        with contextlib.suppress(wire.Malformed):
            return wire.decode(data, kind)
    raise AssertionError("a record of no known kind")


def keep_begun(seen: Watched) -> None:
    """What the workers were given."""
    for begin in seen.begun:
        seen.keep("ceremony key", *(key for peer in begin.peers for key in (peer.send_key, peer.receive_key)))
        seen.keep("sub-seed", *(seed for _, seed in (*begin.subset_seeds, *begin.pair_seeds)))
        seen.left.append(("worker's order, shown", repr(begin).encode() + repr(begin.peers).encode()))


def sign(net: Net, client: TestClient, key_id: str, sid: bytes, number: int) -> bool:
    """One request through both steps; whether everybody gave a share."""
    request = client.sign_hash(key_id, hashlib.sha256(bytes([number])).digest(), (0, number))
    reports = net.authorise(request, key_id, COMMITTEE, wire.PresignatureName(sid, number))
    authorizations = authorizations_of(reports)
    if len(authorizations) < len(COMMITTEE):
        return False
    shares = net.online(authorizations, key_id, COMMITTEE)
    return all([type(report) for report in shares[j]] == [wire.ShareReport] for j in COMMITTEE)


def whole_run(seen: Watched) -> tuple[Net, TestGate]:
    """Setup, key, batch, signatures, a refusal by the gate, one by a wrong request, a restart, and all that again."""
    net, client, gate = make_net()
    net.start()
    net.setup()
    key_id = net.keygen(client.create_key())[1].certificates[0][0].acknowledgement.key_id
    for boot in range(2):
        if boot:
            before = net.members[2]
            net.reboot(2)
            net.presence(tuple(net.members))
            net.run()
            keep_left(seen, before)
            net.setup(epoch=2)
        sid = net.presign(COMMITTEE, BATCH)[1].sid
        net.drain()
        for member in net.members.values():
            keep_memory(seen, member)
        assert [sign(net, client, key_id, sid, number) for number in (1, 2)] == [True, True]
        gate.decide = lambda member, request: (member != 3, "not this one")
        assert not sign(net, client, key_id, sid, 3)
        gate.decide = lambda member, request: (True, "")
        stranger = TestClient(net.clock)
        assert not sign(net, stranger, key_id, sid, 4)
    net.advance(61.0)
    for member in net.members.values():
        keep_left(seen, member)
    return net, gate


@pytest.fixture(scope="module")
def seen() -> Iterator[Watched]:
    watched = Watched()
    seal, handle = SoftwareHsm.seal, Worker.handle

    def watching_seal(hsm: SoftwareHsm, context: Any, plaintext: Any) -> bytes:
        watched.sealed.append(plaintext if isinstance(plaintext, bytes) else plaintext.reveal())
        return seal(hsm, context, plaintext)

    def watching_handle(worker: Worker, message: Any) -> None:
        if isinstance(message, Begin):
            watched.begun.append(message)
        handle(worker, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SoftwareHsm, "seal", watching_seal)
        patch.setattr(Worker, "handle", watching_handle)
        net, gate = whole_run(watched)
        keep_sealed(watched)
        keep_begun(watched)
        for keys in (gate.keys.request, gate.keys.answer):
            watched.keep("gate secret", *(key.reveal() for key in keys))
        watched.left += [(f"frame {sender} to {to}", data) for sender, to, data in net.frames]
        yield watched


def test_every_kind_of_secret_was_collected(seen: Watched) -> None:
    # Two epochs, each with 3 subsets of two, 3 pairs for presigning and 3 for the online step; the rest per enclave.
    assert {kind: len(values) for kind, values in seen.secrets.items()} == {
        "key share": 3,
        "PRSS seed": 2 * 9,
        "link key": 3 + 2,
        "frame secret": 3 + 1,
        "identity key": 3,
        "presignature share": 2 * 3 * BATCH,
        "ceremony key": 2 * 6,
        "sub-seed": 2 * 6,
        "gate secret": 2,
    }


def test_the_scanner_finds_each_of_them_in_what_is_sealed(seen: Watched) -> None:
    found = {leak.secret for leak in leaks(seen.known, [("before sealing", data) for data in seen.sealed])}
    assert found == {"key share", "PRSS seed"}


def test_what_left_the_enclaves_is_all_there(seen: Watched) -> None:
    places = {str(place).removeprefix("signer-")[1:].strip() for place, _ in seen.left}
    assert {"said", "said, shown", "audit", "store", "log", "parts", "status"} <= places
    together = b"".join(data for _, data in seen.left)
    for word in (b"not this one", b"link up", b"key-active", b"signature"):
        assert word in together, word


def test_none_of_them_left_an_enclave(seen: Watched) -> None:
    assert leaks(seen.known, seen.left) == []


def test_one_that_leaves_is_found(seen: Watched) -> None:
    for kind, values in sorted(seen.secrets.items()):
        record = wire.Record("key", "key-1", 2, b"\x00" + min(values))
        found = leaks(seen.known, [("planted", wire.encode(record))])
        assert Leak(kind, "raw", "planted") in found
        assert {leak.secret for leak in found} == {kind}
