"""Real enclaves, and in place of their signers one that lies: no refusal, silence, replay, dry run or other request's
yes becomes an approval. In mode `status` it can approve, which is all it can."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from enclave import wire
from policies.model import Policy
from tests.fakes.clients import TestClient, open_policy
from tests.fakes.enclave_processes import ProcessNet
from tests.fakes.lying_signer import KeyedGate, LyingSigner

COMMITTEE = (1, 2, 3)
HMAC, ED25519, STATUS = COMMITTEE
GATES: dict[int, dict[str, Any]] = {
    HMAC: {"mode": "signed", "deadline_s": 2},
    ED25519: {"mode": "signed", "requests": ["v1a"], "answers": ["v1a"], "deadline_s": 2},
    STATUS: {"mode": "status", "deadline_s": 2},
}
numbers = itertools.count()


class Stage:
    """The network, its key and presignatures; `ask` puts one new request to one signer."""

    def __init__(self, net: ProcessNet, client: TestClient, signer: LyingSigner) -> None:
        self.net, self.client, self.signer = net, client, signer
        self.net.setup()
        self.key = net.keygen(client.create_key())[1].certificates[0][0].acknowledgement
        self.sid = net.presign(COMMITTEE, 100)[1].sid
        self.net.drain()

    def order(self, j: int, request: wire.ClientRequest) -> Any:
        ceremony = os.urandom(16)
        name = wire.PresignatureName(self.sid, 1 + next(numbers) % 100)
        self.net.order(j, wire.SignOrder(ceremony, self.key.key_id, request, COMMITTEE, name))

        def decided() -> list[Any]:
            found = [each for each in self.net.reports[j] if getattr(each, "ceremony", None) == ceremony]
            return [each for each in found if not isinstance(each, wire.GatePending)]

        self.net.wait(decided)
        (report,) = decided()
        self.net.drain()
        return report

    def ask(self, j: int) -> Any:
        h = hashlib.sha256(str(next(numbers)).encode()).digest()
        return self.order(j, self.client.sign_hash(self.key.key_id, h))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    client, gate = TestClient(time.time), KeyedGate(time.time, {ED25519})
    signer = LyingSigner(gate)
    policy: Policy = open_policy(client)
    net = ProcessNet(tmp_path_factory.mktemp("lying"), policy, gate.secrets, signer, gates=GATES)
    try:
        net.start()
        made = Stage(net, client, signer)
        # An honest yes each, which the liar keeps.
        for j in COMMITTEE:
            assert isinstance(made.ask(j), wire.Authorized)
        yield made
    finally:
        net.stop()


LIES = {
    "unsigned_yes": "gate/unsigned",
    "forged_yes": "gate/signature",
    "no_made_yes": "gate/signature",
    "time_out_made_yes": "gate/unsigned",
    "replayed_yes": "gate/echo",
    "dry_run_yes": "gate/echo",
    "yes_to_another_hash": "gate/echo",
    "reflected_question": "gate/signature",
    "yes_by_the_other_scheme": "gate/signature",
    "yes_with_another_status": "gate/status",
    "pending_for_ever": "gate/undecided",
    "unreachable": "gate/redirect",
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("j", [HMAC, ED25519])
def test_a_lie_approves_nothing(stage: Stage, j: int, lie: str) -> None:
    stage.signer.lie = getattr(stage.signer, lie)
    report = stage.ask(j)
    assert (type(report), getattr(report, "rule", "")) == (wire.RequestRefused, LIES[lie])


def test_another_signers_yes_is_not_ones_own(stage: Stage) -> None:
    """Where two signers' handlers have the same keys, which they should not."""
    signer = stage.signer
    signer.lie = lambda member, call: signer.gate.honest(member, call, True, signer_id="signer-3")
    assert stage.ask(HMAC).rule == "gate/echo"


def test_silence_is_a_refusal(stage: Stage) -> None:
    stage.signer.lie = stage.signer.nothing
    assert stage.ask(ED25519).rule == "gate/timeout"


def test_an_answer_that_nobody_asked_for_is_dropped(stage: Stage) -> None:
    """Neither before a question nor after its end."""
    signer = stage.signer
    signer.lie = lambda member, call: signer.handler(member, call, False)
    assert stage.ask(HMAC).rule == "gate"
    last = signer.asked[HMAC][-1]
    stage.net.tell(HMAC, signer.gate.honest(HMAC, last, True))
    stage.net.tell(HMAC, wire.GateReply(os.urandom(16).hex(), 200, "", "", "", 0, b""))
    assert stage.ask(HMAC).rule == "gate"


def test_a_no_stays_a_no_however_often_it_is_ordered(stage: Stage) -> None:
    signer = stage.signer
    signer.lie = lambda member, call: signer.handler(member, call, False)
    request = stage.client.sign_hash(stage.key.key_id, hashlib.sha256(b"no").digest())
    assert stage.order(HMAC, request).rule == "gate"
    signer.lie = lambda member, call: signer.handler(member, call, True)
    asked = len(signer.asked[HMAC])
    assert stage.order(HMAC, request).rule == "gate"
    assert len(signer.asked[HMAC]) == asked


@pytest.mark.parametrize("lie", ["time_out_made_yes", "no_made_yes", "replayed_yes", "dry_run_yes"])
def test_in_mode_status_it_can_approve(stage: Stage, lie: str) -> None:
    stage.signer.lie = getattr(stage.signer, lie)
    assert isinstance(stage.ask(STATUS), wire.Authorized)


def test_in_mode_status_it_can_do_no_more_than_that(stage: Stage) -> None:
    """It can't have another hash signed than the client's, nor what the client did not sign or the policy refuses."""
    signer, key_id = stage.signer, stage.key.key_id
    signer.lie = signer.time_out_made_yes
    h = hashlib.sha256(b"status").digest()
    report = stage.order(STATUS, stage.client.sign_hash(key_id, h))
    assert report.authorization.authorization.terms.h == h
    good = stage.client.sign_hash(key_id, hashlib.sha256(b"another").digest())
    forged = msgspec.structs.replace(good, body=good.body.replace(b'"Hash"', b'"hash"'))
    assert stage.order(STATUS, forged).rule == "request/signature"
    stranger = TestClient(time.time, "stranger")
    assert stage.order(STATUS, stranger.sign_hash(key_id, h)).rule == "request/client"
    refusing = {"gate/status": 401, "gate": 403}
    for rule, status in refusing.items():
        signer.lie = lambda member, call, status=status: wire.GateReply(call.uid, status, "", "", "", 0, b"")  # type: ignore[misc]
        assert stage.ask(STATUS).rule == rule
    signer.lie = signer.pending_for_ever
    assert stage.ask(STATUS).rule == "gate/status"
