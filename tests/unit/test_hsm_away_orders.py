"""What an enclave does while its HSM is away: nothing that it could not finish, and nothing is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from enclave import wire
from enclave.standing import PERIOD_S
from tests.fakes.clients import TestClient, TestGate, open_policy
from tests.fakes.enclaves import Clock, Net, authorizations_of

COMMITTEE = (1, 2, 3)
H = bytes(range(32))


@dataclass
class Desk:
    net: Net
    client: TestClient
    key_id: str
    first: wire.PresignatureName


@pytest.fixture
def desk() -> Desk:
    clock = Clock()
    client, gate = TestClient(clock), TestGate(clock)
    net = Net(open_policy(client), gate, gate.keys, clock=clock)
    net.start()
    net.setup()
    key_id = net.keygen(client.create_key())[1].certificates[0][0].acknowledgement.key_id
    name = wire.PresignatureName(net.presign(COMMITTEE, 2)[1].sid, 1)
    net.drain()
    return Desk(net, client, key_id, name)


def test_request_is_refused_before_gate_and_request_book(desk: Desk) -> None:
    one = desk.net.members[1]
    request = desk.client.sign_hash(desk.key_id, H)
    one.hsm.away = True
    reports = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.first)
    assert [(type(r), r.rule) for r in reports[1]] == [(wire.RequestRefused, "unavailable")]
    assert "pulled out" in reports[1][0].reason
    assert one.gate_calls == []
    one.hsm.away = False
    reports = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.first)
    assert [type(r) for r in reports[1]] == [wire.Authorized]


def test_online_step_spends_no_presignature(desk: Desk) -> None:
    one = desk.net.members[1]
    reports = desk.net.authorise(desk.client.sign_hash(desk.key_id, H), desk.key_id, COMMITTEE, desk.first)
    authorizations = authorizations_of(reports)
    one.hsm.away = True
    (refused,) = desk.net.online(authorizations, desk.key_id, (1,))[1]
    assert isinstance(refused, wire.OnlineRefused)
    assert not refused.spent
    assert len(one.core.pool) == 2
    one.hsm.away = False
    (share,) = desk.net.online(authorizations, desk.key_id, (1,))[1]
    assert isinstance(share, wire.ShareReport)
    assert len(one.core.pool) == 1


def test_ceremonies_that_seal_are_refused_and_presigning_goes_on(desk: Desk) -> None:
    net, one = desk.net, desk.net.members[1]
    one.hsm.away = True
    for body in (
        wire.SetupOrder(bytes(16), 2, net.nonces(COMMITTEE, "setup")),
        wire.KeygenOrder(bytes(16), (desk.client.create_key(),), net.nonces(COMMITTEE, "keygen")),
        wire.ActivateOrder(bytes(16), desk.key_id, _certificate(desk)),
    ):
        net.order(1, body)
        net.run()
        (refused,) = net.drain()[1]
        assert isinstance(refused, wire.OrderRefused), body
        assert refused.reason.startswith("the HSM was pulled out")
    assert sorted(net.presign(COMMITTEE, 1)) == [1, 2, 3]


def _certificate(desk: Desk) -> tuple[wire.SignedAcknowledgement, ...]:
    made = desk.net.members[1].said
    activated = [said.body for said in made if isinstance(said, wire.Report)]
    return next(body.certificates[0] for body in activated if isinstance(body, wire.KeysActivated))


def test_audit_head_waits_for_the_hsm(desk: Desk) -> None:
    one = desk.net.members[1]

    def heads() -> int:
        return sum(json.loads(entry.body)["event"] == "head" for entry in one.audit)

    one.hsm.away = True
    desk.net.advance(PERIOD_S)
    desk.net.advance(PERIOD_S)
    assert heads() == 0
    one.hsm.away = False
    desk.net.advance(PERIOD_S)
    assert heads() == 1
    assert one.audit[-1].head_signature != b""


def test_status_says_so(desk: Desk) -> None:
    one = desk.net.members[1]
    for away, expected in ((True, ("hsm-away", "the HSM was pulled out")), (False, ("ready", ""))):
        one.hsm.away = away
        desk.net.tell(1, wire.StatusQuery())
        desk.net.run()
        assert isinstance(one.said[-1], wire.Status)
        assert (one.said[-1].state, one.said[-1].reason) == expected
