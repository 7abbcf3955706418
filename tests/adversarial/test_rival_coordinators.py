"""Two coordinators of one network, on whole enclaves in memory: honest rivals, and one that is hostile."""

from __future__ import annotations

import os

import pytest

from enclave import wire
from enclave.setup_turn import LEASE_S
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.fakes.enclaves import COORDINATOR, Net

OTHER = "other"


def order(net: Net, j: int, body: wire.OrderBody, coordinator: str = OTHER) -> list[object]:
    """What signer `j` reports to an order that comes through `coordinator`."""
    key_id = getattr(body, "key_id", None)
    record = net.members[j].store.get(("key", key_id)) if key_id else None
    net.tell(j, wire.Order(coordinator, body, record))
    net.run()
    return net.drain()[j]


def prepare_setup(net: Net, j: int, coordinator: str) -> type[object]:
    return type(order(net, j, wire.PrepareOrder(coordinator.encode().ljust(16, b"-"), "setup"), coordinator)[-1])


@pytest.fixture
def joined(desk: Desk) -> Net:
    """The network of `desk`, whose signers reach each other through another coordinator too."""
    for j in COMMITTEE:
        desk.net.tell(j, wire.Presence(OTHER, COMMITTEE))
    desk.net.run()
    desk.net.drain()
    return desk.net


def test_a_setup_is_one_coordinators_turn(joined: Net) -> None:
    assert prepare_setup(joined, 1, COORDINATOR) is wire.NonceReport
    assert prepare_setup(joined, 1, OTHER) is wire.OrderRefused
    assert prepare_setup(joined, 1, COORDINATOR) is wire.NonceReport  # again for whoever has it


def test_a_turn_ends_when_it_is_given_up_or_its_coordinator_is_away_or_never_begins(joined: Net) -> None:
    assert prepare_setup(joined, 1, COORDINATOR) is wire.NonceReport
    order(joined, 1, wire.AbandonOrder(COORDINATOR.encode().ljust(16, b"-")), OTHER)  # not the other's to give up
    assert prepare_setup(joined, 1, OTHER) is wire.OrderRefused
    order(joined, 1, wire.AbandonOrder(COORDINATOR.encode().ljust(16, b"-")), COORDINATOR)
    assert prepare_setup(joined, 1, OTHER) is wire.NonceReport
    joined.tell(1, wire.Presence(OTHER, ()))
    joined.run()
    assert prepare_setup(joined, 1, COORDINATOR) is wire.NonceReport
    joined.advance(LEASE_S)
    assert prepare_setup(joined, 1, OTHER) is wire.NonceReport


def test_a_setup_ordered_out_of_turn_is_refused_and_costs_no_presignature(joined: Net) -> None:
    """A coordinator that collected nonces and lost its turn meanwhile can't destroy what the other has made."""
    for j in COMMITTEE:
        joined.tell(j, wire.Order(OTHER, wire.PrepareOrder(b"stolen-ceremony-", "setup"), None))
    joined.run()
    nonces = tuple(reports[0].nonce for reports in joined.drain().values())
    joined.advance(LEASE_S)
    for j in COMMITTEE:
        assert prepare_setup(joined, j, COORDINATOR) is wire.NonceReport
    for j in COMMITTEE:
        (report,) = order(joined, j, wire.SetupOrder(b"stolen-ceremony-", 2, nonces))
        assert isinstance(report, wire.OrderRefused)
        assert "busy" in report.reason
    assert [len(member.core.pool) for member in joined.members.values()] == [8, 8, 8]


def test_after_a_setup_it_is_anybodys_turn(joined: Net) -> None:
    assert sorted(joined.setup(epoch=2)) == [1, 2, 3]
    assert prepare_setup(joined, 1, OTHER) is wire.NonceReport


def test_a_coordinator_that_claims_to_own_the_others_ceremony_moves_nothing(joined: Net) -> None:
    """Frames of a ceremony are taken from its own coordinator alone, and only that one can end it."""
    nonces = joined.nonces(COMMITTEE, "presign")
    ceremony = os.urandom(16)
    held: list[tuple[int, int, bytes]] = []
    joined.relay = lambda sender, receiver, data: held.append((sender, receiver, data)) or []  # type: ignore[func-returns-value]
    for j in COMMITTEE:
        joined.order(j, wire.PresignOrder(ceremony, COMMITTEE, 2, nonces))
    joined.run()
    for sender, receiver, data in held:
        joined.tell(receiver, wire.PeerFrame(OTHER, sender, data))
    for j in COMMITTEE:
        joined.tell(j, wire.Order(OTHER, wire.AbandonOrder(ceremony), None))
    joined.run()
    assert [len(member.core.dispatch._around.ceremonies) for member in joined.members.values()] == [1, 1, 1]
    joined.relay = lambda sender, receiver, data: [(sender, receiver, data)]
    for sender, receiver, data in held:
        joined.tell(receiver, wire.PeerFrame(COORDINATOR, sender, data))
    joined.run()
    assert sorted(joined.take(wire.PresignDone)) == [1, 2, 3]
