"""A coordinator that flips, drops, repeats, reorders, swaps and replays frames: every fault is the link's, nobody's."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from enclave import wire
from policies.roster import Roster
from tests.adversarial.conftest import COMMITTEE, make_net
from tests.fakes.enclaves import Net, Relay

CEREMONY_FRAME = 2


def running() -> tuple[Net, Any]:
    net, client, _ = make_net()
    net.start()
    assert sorted(net.setup()) == [1, 2, 3]
    return net, client


def tamper(change: Callable[[int, int, bytes], list[tuple[int, int, bytes]]], nth: int) -> Relay:
    """A relay that applies `change` to the `nth` ceremony frame and passes the others on."""
    count = 0

    def relay(sender: int, receiver: int, data: bytes) -> list[tuple[int, int, bytes]]:
        nonlocal count
        if data[0] != CEREMONY_FRAME:
            return [(sender, receiver, data)]
        count += 1
        return change(sender, receiver, data) if count == nth else [(sender, receiver, data)]

    return relay


def flip(sender: int, receiver: int, data: bytes) -> list[tuple[int, int, bytes]]:
    place = random.Random(len(data)).randrange(34, len(data))
    return [(sender, receiver, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])]


CHANGES: dict[str, Callable[[int, int, bytes], list[tuple[int, int, bytes]]]] = {
    "flip": flip,
    "drop": lambda sender, receiver, data: [],
    "repeat": lambda sender, receiver, data: [(sender, receiver, data)] * 2,
    "swap-sender": lambda sender, receiver, data: [(6 - sender - receiver, receiver, data)],
    "misdeliver": lambda sender, receiver, data: [(sender, 6 - sender - receiver, data)],
    "reflect": lambda sender, receiver, data: [(receiver, sender, data)],
    "truncate": lambda sender, receiver, data: [(sender, receiver, data[:-1])],
    "empty": lambda sender, receiver, data: [(sender, receiver, b"")],
}


def check_failures(reports: dict[int, list[Any]]) -> None:
    """At least one member failed for its link; nobody is convicted."""
    failures = [r for found in reports.values() for r in found if isinstance(r, wire.CeremonyFailed)]
    assert failures
    assert {failure.kind for failure in failures} <= {"link", "timeout"}
    assert all(failure.culprits == () for failure in failures)


@pytest.mark.parametrize("nth", [1, 4, 7, 10, 13, 20, 24])
@pytest.mark.parametrize("change", CHANGES)
def test_presigning_through_a_hostile_relay(change: str, nth: int) -> None:
    net, _ = running()
    net.relay = tamper(CHANGES[change], nth)
    nonces = net.nonces(COMMITTEE, "presign")
    for j in COMMITTEE:
        net.order(j, wire.PresignOrder(b"presign-ceremony", COMMITTEE, 2, nonces))
    net.run()
    net.advance(61)
    done = [r for found in net.reports.values() for r in found if isinstance(r, wire.PresignDone)]
    if change == "repeat" and len(done) == 3:
        # The repeated frame came after the ceremony had ended there: nothing to disturb.
        assert [len(member.core.pool) for member in net.members.values()] == [2, 2, 2]
        return
    check_failures(net.drain())
    # Whoever has the batch all the same can do nothing with it alone; the next one works.
    net.relay = lambda sender, receiver, data: [(sender, receiver, data)]
    assert sorted(net.presign(COMMITTEE, 2)) == [1, 2, 3]


@pytest.mark.parametrize("nth", [1, 5, 9, 14, 19, 26])
@pytest.mark.parametrize("change", CHANGES)
def test_key_generation_through_a_hostile_relay(change: str, nth: int) -> None:
    net, client = running()
    net.relay = tamper(CHANGES[change], nth)
    nonces = net.nonces(COMMITTEE, "keygen")
    request = client.create_key()
    for j in COMMITTEE:
        net.order(j, wire.KeygenOrder(b"keygen-ceremony-", (request,), nonces))
    net.run()
    net.advance(61)
    reports = net.drain()
    activated = [r for found in reports.values() for r in found if isinstance(r, wire.KeysActivated)]
    if activated:
        # A key that is active anywhere is pending or active everywhere: nobody lacks a share of it.
        key_id = activated[0].certificates[0][0].acknowledgement.key_id
        assert all(("key", key_id) in member.store for member in net.members.values())
    if len(activated) < 3:
        check_failures(reports)


def test_a_lost_acknowledgement_is_mended_by_the_relayed_certificate() -> None:
    net, client = running()
    net.relay = tamper(CHANGES["drop"], 25)  # one acknowledgement of the last round
    nonces = net.nonces(COMMITTEE, "keygen")
    request = client.create_key()
    for j in COMMITTEE:
        net.order(j, wire.KeygenOrder(b"keygen-ceremony-", (request,), nonces))
    net.run()
    net.advance(61)
    reports = net.drain()
    acknowledged = [
        r.acknowledgements[0] for j in COMMITTEE for r in reports[j] if isinstance(r, wire.KeysAcknowledged)
    ]
    assert len(acknowledged) == 3
    left_out = [j for j in COMMITTEE if not any(isinstance(r, wire.KeysActivated) for r in reports[j])]
    assert len(left_out) == 1
    key_id = acknowledged[0].acknowledgement.key_id
    (j,) = left_out
    net.order(j, wire.ActivateOrder(b"activation------", key_id, (*acknowledged[:2], acknowledged[1])))
    net.run()
    assert [type(report) for report in net.drain()[j]] == [wire.OrderRefused]
    net.order(j, wire.ActivateOrder(b"activation------", key_id, tuple(acknowledged)))
    net.run()
    assert [type(report) for report in net.drain()[j]] == [wire.KeysActivated]


def test_an_acknowledgement_of_another_key_activates_nothing() -> None:
    net, client = running()
    first, second = (net.keygen(client.create_key())[1].certificates[0] for _ in range(2))
    mixed = (first[0], second[1], first[2])
    key_id = first[0].acknowledgement.key_id
    forged = msgspec.structs.replace(first[1], signature=bytes(64))
    for certificate in (mixed, (first[0], forged, first[2]), (first[0], first[0], first[2])):
        net.order(1, wire.ActivateOrder(b"activation------", key_id, certificate))
        net.run()
        assert [type(report) for report in net.drain()[1]] == [wire.OrderRefused]


def test_frames_of_an_earlier_ceremony_replayed() -> None:
    net, _ = running()
    assert sorted(net.presign(COMMITTEE, 2)) == [1, 2, 3]
    old = [frame for frame in net.frames if frame[2][0] == CEREMONY_FRAME]
    nonces = net.nonces(COMMITTEE, "presign")
    for j in COMMITTEE:
        net.order(j, wire.PresignOrder(b"presign-ceremony", COMMITTEE, 2, nonces))
    for sender, receiver, data in old:
        net.tell(receiver, wire.PeerFrame("main", sender, data))
    net.run()
    assert sorted(net.take(wire.PresignDone)) == [1, 2, 3]


def test_a_spent_or_foreign_nonce_starts_nothing() -> None:
    net, _ = running()
    nonces = net.nonces(COMMITTEE, "presign")
    for j in COMMITTEE:
        net.order(j, wire.PresignOrder(b"presign-ceremony", COMMITTEE, 2, nonces))
    net.run()
    assert sorted(net.take(wire.PresignDone)) == [1, 2, 3]
    others = net.nonces(COMMITTEE, "keygen")
    fresh = net.nonces(COMMITTEE, "presign")
    forged = (fresh[0], msgspec.structs.replace(fresh[1], nonce=bytes(32)), fresh[2])
    swapped = (fresh[1], fresh[0], fresh[2])
    for bad in (nonces, others, forged, swapped, fresh[:2]):
        net.order(1, wire.PresignOrder(b"presign-ceremony", COMMITTEE, 2, bad))
        net.run()
        assert [type(report) for report in net.drain()[1]] == [wire.OrderRefused]


def test_a_nonce_that_was_spent_on_one_key_makes_no_other() -> None:
    """Another request, so another context: it is the nonce alone that is refused."""
    net, client = running()
    nonces = net.nonces(COMMITTEE, "keygen")
    told = []
    for label in ("hot/one", "hot/two"):
        for j in COMMITTEE:
            net.order(j, wire.KeygenOrder(b"keygen-ceremony-", (client.create_key(label),), nonces))
        net.run()
        net.advance(61)
        told.append({type(report) for report in net.drain()[1]})
    assert wire.OrderRefused in told[1]
    assert wire.KeysAcknowledged not in told[1]


def test_different_nonces_shown_to_different_members() -> None:
    net, _ = running()
    first, second = net.nonces(COMMITTEE, "presign"), net.nonces(COMMITTEE, "presign")
    views = {1: first, 2: (first[0], first[1], second[2]), 3: (first[0], first[1], second[2])}
    for j in COMMITTEE:
        net.order(j, wire.PresignOrder(b"presign-ceremony", COMMITTEE, 2, views[j]))
    net.run()
    net.advance(61)
    check_failures(net.drain())
    assert [len(member.core.pool) for member in net.members.values()] == [0, 0, 0]


def test_a_foreign_roster_is_refused_and_named() -> None:
    def foreign(roster: Roster) -> Roster:
        other = msgspec.structs.replace(roster.signers[2], operator="Somebody else")
        return msgspec.structs.replace(roster, signers=(*roster.signers[:2], other))

    net, _, _ = make_net(rosters={3: foreign})
    net.start()
    reports = net.drain()
    ups = {j: {r.peer for r in found if isinstance(r, wire.LinkReport) and r.up} for j, found in reports.items()}
    assert ups == {1: {2}, 2: {1}, 3: set()}
    downs = [r.reason for r in reports[3] if isinstance(r, wire.LinkReport) and not r.up]
    assert downs
    assert all("pins another roster" in reason for reason in downs)


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x01", b"\x02", b"\x01" + b"\xc0" * 50, b"\x02" + b"x" * 200, b"\xff" * 9]
)
def test_garbage_frames_harm_nothing(data: bytes) -> None:
    net, _ = running()
    for sender in (1, 2, 3, 9):
        for j in COMMITTEE:
            net.tell(j, wire.PeerFrame("main", sender, data))
    net.run()
    assert sorted(net.presign(COMMITTEE, 2)) == [1, 2, 3]
