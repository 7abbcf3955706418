"""Attacks on the gate's answer: a network, a lying signer process and a confused handler never make a yes of a no."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import msgspec
import pytest

from enclave import asking, webhooks, wire
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.adversarial.test_freezes import held_gate, let_go
from tests.adversarial.test_signing import H1, H2, finish, only, refusals, remaining, verify
from tests.fakes.clients import TestClient, open_policy
from tests.fakes.enclaves import authorizations_of


def sign(desk: Desk, h: bytes = H1, l: int = 1) -> dict[int, list[Any]]:
    return desk.net.authorise(desk.client.sign_hash(desk.key_id, h), desk.key_id, COMMITTEE, desk.name(l))


def reasons(reports: dict[int, list[Any]], rule: str) -> set[str]:
    assert refusals(reports) == {rule}
    return {report.reason for j in COMMITTEE for report in reports[j]}


def test_a_no_of_one_signer_stops_the_request_and_costs_nothing(desk: Desk) -> None:
    desk.gate.decide = lambda member, request: (member != 2, "above the daily limit")
    reports = sign(desk)
    (refused,) = reports[2]
    assert (refused.rule, refused.reason) == ("gate", "above the daily limit")
    assert all(isinstance(report, wire.Authorized) for j in (1, 3) for report in reports[j])
    one, three = authorizations_of(reports)
    only(desk.net.online((one, three, three), desk.key_id, COMMITTEE), wire.OnlineRefused)
    assert remaining(desk) == [8, 8, 8]


def test_the_signer_says_yes_by_itself(desk: Desk) -> None:
    """A lying signer process: HTTP 200, unsigned, or signed by a key it made up."""
    for signature in ("", "v1,", "v1," + "A" * 43 + "=", "v1a,AAAA", "v2,AAAA"):
        desk.gate.alter = lambda member, call, reply, s=signature: msgspec.structs.replace(  # type: ignore[misc]
            reply, webhook_signature=s
        )
        (reason,) = reasons(sign(desk), "gate/signature")
        assert reason.startswith("unsigned answer")
    assert remaining(desk) == [8, 8, 8]


def test_a_no_turned_into_a_yes_on_the_way(desk: Desk) -> None:
    desk.gate.decide = lambda member, request: (False, "no")
    desk.gate.alter = lambda member, call, reply: msgspec.structs.replace(
        reply, body=reply.body.replace(b'"allowed": false', b'"allowed": true')
    )
    (reason,) = reasons(sign(desk), "gate/signature")
    assert reason == "unsigned answer: webhook-signature does not verify"


def test_the_signed_request_reflected_as_an_answer(desk: Desk) -> None:
    desk.gate.alter = lambda member, call, reply: msgspec.structs.replace(
        reply,
        body=call.body,
        webhook_signature=call.webhook_signature,
        webhook_timestamp=call.webhook_timestamp,
    )
    (reason,) = reasons(sign(desk), "gate/signature")
    assert reason == "unsigned answer: webhook-signature does not verify"


def test_a_yes_to_another_request_replayed(desk: Desk) -> None:
    kept: dict[int, wire.GateReply] = {}

    def keep(member: int, call: wire.CallGate, reply: wire.GateReply) -> wire.GateReply:
        return kept.setdefault(member, reply)

    desk.gate.alter = keep
    only(sign(desk), wire.Authorized)
    # The enclave awaits another uid: the old answer, under the new uid, is to something else.
    desk.gate.alter = lambda member, call, reply: msgspec.structs.replace(kept[member], uid=call.uid)
    (reason,) = reasons(sign(desk, H2, 2), "gate/echo")
    assert reason == "the answer is to something else: uid"


@pytest.mark.parametrize("field", ["type", "uid", "request_digest", "signer_id", "kind", "dryRun"])
def test_every_echo_counts(desk: Desk, field: str) -> None:
    def alter(member: int, call: wire.CallGate, reply: wire.GateReply) -> wire.GateReply:
        answer = json.loads(reply.body)
        answer[field] = True if field == "dryRun" else "validation.request" if field == "type" else "other"
        return desk.gate.reply(call.uid, answer)

    desk.gate.alter = alter
    (reason,) = reasons(sign(desk), "gate/echo")
    assert reason == f"the answer is to something else: {field}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"<html>OK</html>",
        b'{"allowed": true}',
        b"[" * 40_000,
        b'{"allowed": true, "allowed": false}',
        b"\xff\xfe",
        b"1e99999",
    ],
)
def test_a_signed_body_that_is_no_answer(desk: Desk, body: bytes) -> None:
    desk.gate.alter = lambda member, call, reply: desk.gate.reply(call.uid, body)
    (reason,) = reasons(sign(desk), "gate/malformed")
    assert reason.startswith("malformed answer")


def test_a_duplicate_key_in_a_signed_answer(desk: Desk) -> None:
    def alter(member: int, call: wire.CallGate, reply: wire.GateReply) -> wire.GateReply:
        body = reply.body.replace(b'"allowed": false', b'"allowed": false, "allowed": true')
        return desk.gate.reply(call.uid, body)

    desk.gate.decide = lambda member, request: (False, "")
    desk.gate.alter = alter
    (reason,) = reasons(sign(desk), "gate/malformed")
    assert reason == "malformed answer: a duplicate key"


@pytest.mark.parametrize("offset_s", [-301, 301])
def test_a_stale_or_future_answer(desk: Desk, offset_s: int) -> None:
    def alter(member: int, call: wire.CallGate, reply: wire.GateReply) -> wire.GateReply:
        at_s = int(desk.net.clock()) + offset_s
        signature = webhooks.sign(desk.gate.keys.answer, call.uid, at_s, reply.body)
        return msgspec.structs.replace(reply, webhook_timestamp=str(at_s), webhook_signature=signature)

    desk.gate.alter = alter
    (reason,) = reasons(sign(desk), "gate/stale")
    assert "300 s off" in reason


def test_a_yes_that_has_expired(desk: Desk) -> None:
    def alter(member: int, call: wire.CallGate, reply: wire.GateReply) -> wire.GateReply:
        answer = json.loads(reply.body) | {"expiresAt": "2020-01-01T00:00:00Z"}
        return desk.gate.reply(call.uid, answer)

    desk.gate.alter = alter
    (reason,) = reasons(sign(desk), "gate/expired")
    assert "expired" in reason


@pytest.mark.parametrize("status", [201, 204, 301, 302, 400, 401, 403, 404, 500])
def test_every_other_status_refuses_even_with_a_signed_yes(desk: Desk, status: int) -> None:
    desk.gate.alter = lambda member, call, reply: msgspec.structs.replace(reply, status=status)
    (reason,) = reasons(sign(desk), "gate/status")
    assert reason == f"HTTP {status}"


def test_no_answer_until_the_deadline_refuses(desk: Desk) -> None:
    desk.gate.alter = lambda member, call, reply: None
    assert all(not reports for reports in sign(desk).values())
    for _ in range(80):
        desk.net.advance(1)
    (reason,) = reasons(desk.net.drain(), "gate/timeout")
    assert reason.startswith("no yes from the gate before the deadline")
    assert remaining(desk) == [8, 8, 8]


def test_unreachable_is_retried_and_then_answered(desk: Desk) -> None:
    tries: dict[int, int] = {}

    def alter(member: int, call: wire.CallGate, reply: wire.GateReply) -> Any:
        tries[member] = tries.get(member, 0) + 1
        if tries[member] == 1:
            return wire.GateUnreachable(call.uid, "connection refused")
        if tries[member] == 2:
            return msgspec.structs.replace(reply, status=503, body=b"")
        return reply

    desk.gate.alter = alter
    sign(desk)
    for _ in range(5):
        desk.net.advance(1)
    reports = desk.net.drain()
    only(reports, wire.Authorized)
    assert tries == {1: 3, 2: 3, 3: 3}
    attempts = [json.loads(call.body)["attempt"] for call in desk.net.members[1].gate_calls]
    assert attempts == [1, 2, 3]


def test_pending_is_polled_and_a_fresh_presignature_is_named_after_the_yes(desk: Desk) -> None:
    decided = False

    def alter(member: int, call: wire.CallGate, reply: wire.GateReply) -> Any:
        return reply if decided else msgspec.structs.replace(reply, status=202, retry_after_s=1, body=b"")

    desk.gate.alter = alter
    request = desk.client.sign_hash(desk.key_id, H1)
    pending = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name())
    only(pending, wire.GatePending)
    # Nothing is reserved meanwhile: another request takes the named presignature.
    decided = True
    other = sign_while_pending(desk)
    verify(desk, finish(desk, authorizations_of(other)), H2)
    desk.net.drain()
    desk.net.advance(2)
    only(desk.net.drain(), wire.UnknownPresignature)
    reports = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name(2))
    verify(desk, finish(desk, authorizations_of(reports)), H1)


def sign_while_pending(desk: Desk) -> dict[int, list[Any]]:
    return sign(desk, H2, 1)


def test_the_gate_is_told_what_the_enclave_knows(desk: Desk) -> None:
    told: dict[int, dict[str, Any]] = {}

    def decide(member: int, request: dict[str, Any]) -> tuple[bool, str]:
        told[member] = request
        return True, ""

    desk.gate.decide = decide
    request = desk.client.sign_hash(desk.key_id, hashlib.sha256(b"told").digest(), (0, 5))
    only(desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name()), wire.Authorized)
    info = told[2]["signerInfo"]
    assert info["tx_hash"] == hashlib.sha256(b"told").hexdigest()
    assert info["blind"] is True
    assert info["signer_id"] == "signer-2"
    assert info["derivation_path"] == [0, 5]
    assert info["participants"] == [1, 2, 3]
    assert info["public_key"] == desk.key.public_key.hex()
    assert told[2]["requestInfo"]["untrusted"] is True
    assert told[2]["requestInfo"]["requester"] == "payments"
    assert len({request["uid"] for request in told.values()}) == 3


def test_one_clients_waiting_requests_keep_nobody_else_from_the_gate(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "MAX_CONVERSATIONS", 4)
    monkeypatch.setattr(asking, "MAX_CONVERSATIONS_OF_CLIENT", 2, raising=False)
    other = TestClient(desk.net.clock, "other")
    for j in COMMITTEE:
        desk.net.policies[j] = open_policy(desk.client, other)
        desk.net.members[j].core.reload.run()
    held = held_gate(desk)
    assert [[*sign(desk).values()] for _ in range(2)] == [[[], [], []]] * 2
    assert reasons(sign(desk), "gate/busy") == {"2 gate calls for payments are under way"}
    another = dataclasses.replace(desk, client=other)
    assert [*sign(another).values()] == [[], [], []]
    assert len(authorizations_of(let_go(desk, held))) == 9
    # The ended ones make room.
    held.clear()
    assert [[*sign(desk).values()] for _ in range(2)] == [[[], [], []]] * 2
