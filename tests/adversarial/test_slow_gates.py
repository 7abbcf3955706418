"""Gates that take hours, and gates that are asked about keys: what an enclave remembers meanwhile, and of whom."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import msgspec
import pytest

from appliance.coordinator.gates import unheld
from enclave import request_book, wire
from enclave.errors import Refused
from enclave.request_book import RequestBook
from tests.adversarial.conftest import COMMITTEE, Desk, make_net
from tests.adversarial.test_signing import H1, finish, only, refusals, remaining, verify
from tests.fakes.enclaves import COORDINATOR, authorizations_of

DAY_S = 86_400
HOURS_S = 5 * 3600
(NOBODYS,) = unheld(1)


@pytest.fixture
def desk() -> Desk:
    """As everywhere, with a day for each gate."""
    net, client, gate = make_net(gate_options={"deadline_s": DAY_S})
    net.start()
    net.setup()
    key = net.keygen(client.create_key())[1].certificates[0][0].acknowledgement
    sid = net.presign(COMMITTEE, 8)[1].sid
    net.drain()
    return Desk(net, client, gate, key, sid)


class Away:
    """The person behind the gate of signer 2."""

    def __init__(self, desk: Desk) -> None:
        self.away, self.uids = True, set[str]()
        desk.gate.alter = self._alter

    def _alter(self, member: int, call: wire.CallGate, reply: wire.GateReply) -> Any:
        if member != 2 or not self.away:
            return reply
        self.uids.add(call.uid)
        return msgspec.structs.replace(reply, status=202, retry_after_s=300, body=b"")


def order(
    desk: Desk, request: wire.ClientRequest, j: int, name: wire.PresignatureName, coordinator: str = COORDINATOR
) -> bytes:
    ceremony = os.urandom(16)
    desk.net.order(j, wire.SignOrder(ceremony, desk.key_id, request, COMMITTEE, name), coordinator)
    desk.net.run()
    return ceremony


def pass_time(desk: Desk, seconds: int) -> None:
    for _ in range(seconds // 300):
        desk.net.advance(300)


def test_a_yes_after_hours_is_signed_though_the_jws_has_expired_long_ago(desk: Desk) -> None:
    person, request = Away(desk), desk.client.sign_hash(desk.key_id, H1)
    first = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name())
    assert [type(first[j][-1]) for j in COMMITTEE] == [wire.Authorized, wire.GatePending, wire.Authorized]
    order(desk, request, 2, NOBODYS)
    pass_time(desk, HOURS_S)
    desk.net.drain()
    assert len(person.uids) == 1
    person.away = False
    pass_time(desk, 600)
    (approved,) = desk.net.drain()[2]
    assert isinstance(approved, wire.UnknownPresignature)
    # Now all of them, with a presignature of this moment: the first yes of the others has expired, so they ask again.
    calls = [len(desk.net.members[j].gate_calls) for j in COMMITTEE]
    reports = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name(3))
    verify(desk, finish(desk, authorizations_of(reports)), H1)
    asked = [len(desk.net.members[j].gate_calls) - n for j, n in zip(COMMITTEE, calls, strict=True)]
    assert asked[0] == asked[2] == 1
    assert remaining(desk) == [7, 7, 7]


def test_a_request_that_nobody_knew_is_not_taken_hours_later(desk: Desk) -> None:
    request = desk.client.sign_hash(desk.key_id, H1)
    pass_time(desk, HOURS_S)
    assert refusals(desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name())) == {"request/expired"}


def test_a_request_that_was_carried_out_is_not_taken_hours_later(desk: Desk) -> None:
    request = desk.client.sign_hash(desk.key_id, H1)
    verify(desk, finish(desk, authorizations_of(desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name()))), H1)
    pass_time(desk, HOURS_S)
    desk.net.authorise(desk.client.sign_hash(desk.key_id, os.urandom(32)), desk.key_id, COMMITTEE, desk.name(2))
    for member in desk.net.members.values():
        member.answers.clear()
    assert refusals(desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name(3))) == {"request/expired"}


def test_a_proxy_that_says_to_come_back_much_later_is_asked_again_in_five_minutes(desk: Desk) -> None:
    uids: list[str] = []

    def alter(member: int, call: wire.CallGate, reply: wire.GateReply) -> Any:
        if member != 2:
            return reply
        uids.append(call.uid)
        return msgspec.structs.replace(reply, status=503, retry_after_s=3600, body=b"") if len(uids) == 1 else reply

    desk.gate.alter = alter
    order(desk, desk.client.sign_hash(desk.key_id, H1), 2, desk.name())
    desk.net.advance(299)
    assert len(uids) == 1
    desk.net.advance(2)
    assert len(uids) == 2
    assert len(set(uids)) == 1


def test_whoever_orders_again_learns_at_once_that_the_gate_is_deciding(desk: Desk) -> None:
    """A coordinator that was away, or a signer process that was: the conversation goes on, with the one uid."""
    person, request = Away(desk), desk.client.sign_hash(desk.key_id, H1)
    order(desk, request, 2, desk.name())
    desk.net.drain()
    second = order(desk, request, 2, NOBODYS)
    (pending,) = desk.net.drain()[2]
    assert (type(pending), pending.ceremony) == (wire.GatePending, second)
    member = desk.net.members[2]
    desk.net.presence((1, 3))
    desk.net.run()
    member.core.dispatch.on_detached()
    pass_time(desk, 1800)
    member.core.effects.attach(lambda message: desk.net._said(member, message))
    desk.net.attach(2)
    desk.net.run()
    third = order(desk, request, 2, NOBODYS)
    assert [report.ceremony for report in desk.net.drain()[2] if isinstance(report, wire.GatePending)] == [third]
    person.away = False
    pass_time(desk, 900)
    (approved,) = [r for r in desk.net.drain()[2] if isinstance(r, wire.UnknownPresignature)]
    assert (approved.ceremony, len(person.uids)) == (third, 1)


def test_a_no_is_told_again_with_its_reason(desk: Desk) -> None:
    desk.gate.decide = lambda member, request: (member != 2, "not while I am away")
    request = desk.client.sign_hash(desk.key_id, H1)
    for _ in range(3):
        order(desk, request, 2, NOBODYS)
        (refused,) = desk.net.drain()[2]
        assert (refused.rule, refused.reason) == ("gate", "not while I am away")
    assert len(desk.net.members[2].gate_calls) == 1


def test_undecided_at_the_deadline_is_a_refusal_and_costs_nothing(desk: Desk) -> None:
    Away(desk)
    order(desk, desk.client.sign_hash(desk.key_id, H1), 2, NOBODYS)
    pass_time(desk, DAY_S + 600)
    refused = desk.net.drain()[2][-1]
    assert (refused.rule, refused.reason) == ("gate/undecided", "no yes from the gate before the deadline (undecided)")
    assert remaining(desk) == [8, 8, 8]


def test_an_enclave_that_restarted_wants_the_request_signed_anew(desk: Desk) -> None:
    Away(desk)
    request = desk.client.sign_hash(desk.key_id, H1)
    order(desk, request, 2, NOBODYS)
    desk.net.advance(60)
    desk.net.reboot(2)
    desk.net.presence(COMMITTEE)
    desk.net.run()
    desk.net.drain()
    order(desk, request, 2, NOBODYS)
    assert desk.net.drain()[2][-1].rule == "request/boot"


def test_waiting_requests_make_room_and_fresh_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_book, "MAX_REQUESTS", 4)
    now = [0.0]
    book = RequestBook(lambda: now[0])
    for number in range(4):
        book.open(bytes([number]) * 32, keep_until_s=1000.0, fresh_until_s=100.0)
    with pytest.raises(Refused, match="4 requests are remembered"):
        book.open(b"x" * 32, 1000.0, 100.0)
    now[0] = 200.0
    asking = book.get(bytes(32))
    assert asking is not None
    asking.asking = True
    book.open(b"x" * 32, 1000.0, 300.0)
    assert [book.get(bytes([number]) * 32) is not None for number in range(4)] == [True, False, True, True]


def test_one_client_fills_half_of_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it asks for, and however often it is refused; its own oldest request makes room for its next."""
    monkeypatch.setattr(request_book, "MAX_REQUESTS", 4)
    monkeypatch.setattr(request_book, "MAX_REQUESTS_OF_CLIENT", 2)
    now = [0.0]
    book = RequestBook(lambda: now[0])

    def known(*numbers: int) -> list[bool]:
        return [book.get(bytes([number]) * 32) is not None for number in numbers]

    def ask(number: int, client_id: str) -> None:
        book.open(bytes([number]) * 32, now[0] + 1000.0, now[0] + 100.0, client_id)

    for number in (1, 2):
        ask(number, "greedy")
    with pytest.raises(Refused, match="2 requests of greedy are remembered"):
        ask(3, "greedy")
    ask(1, "greedy")  # it is known
    for number in (4, 5):
        ask(number, "modest")
    now[0] = 101.0
    ask(3, "greedy")
    assert (known(1, 2, 3, 4, 5), len(book)) == ([False, True, True, True, True], 4)
    # The book is full: of those with most, the one whose oldest is only waited for gives way.
    ask(6, "third")
    assert (sum(known(2, 4, 5)), known(3, 6), len(book)) == (2, [True, True], 4)


def test_what_is_forgotten_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what was carried out, nor what nobody came back for, nor what made room."""
    monkeypatch.setattr(request_book, "MAX_REQUESTS_OF_CLIENT", 3)
    monkeypatch.setattr(request_book, "LEAST_DUE", 4)
    now = [0.0]
    book = RequestBook(lambda: now[0])
    for number in range(200):
        now[0] = 150.0 * number
        state = book.open(number.to_bytes(32, "big"), now[0] + 900.0, now[0] + 100.0, "client", waits=number % 2 == 0)
        name = wire.PresignatureName(bytes(32), 1)
        book.begin(state, request_book.Attempt("main", number.to_bytes(16, "big"), COMMITTEE, (name,)))
        state.done = number % 3 == 0
        assert len(book) <= 3
        assert len(book._due) <= 2 * len(book) + 4
    now[0] += 2000.0
    last = book.open(b"\xff" * 32, now[0] + 1.0, now[0] + 1.0, "client")
    assert (len(book), book._items, len(book._by_attempt), book._idle) == (1, 0, 0, {})
    assert (book._requests_of, book._waiting["client"]) == (Counter(client=1), 0)
    assert last.verified_s == int(now[0])


# --- keys ---


@pytest.fixture
def keys() -> Desk:
    """A network whose gates are asked about keys, too."""
    net, client, gate = make_net(gate_options={"key_creation": True})
    net.start()
    net.setup()
    net.drain()
    return Desk(net, client, gate, None, b"")  # type: ignore[arg-type]


def consent(desk: Desk, request: wire.ClientRequest) -> dict[int, Any]:
    ceremony = os.urandom(16)
    for j in COMMITTEE:
        desk.net.order(j, wire.ConsentOrder(ceremony, request))
    desk.net.run()
    return {j: reports[-1] for j, reports in desk.net.drain().items()}


def make_key(desk: Desk, request: wire.ClientRequest) -> dict[int, list[Any]]:
    nonces = desk.net.nonces(COMMITTEE, "keygen")
    for j in COMMITTEE:
        desk.net.order(j, wire.KeygenOrder(os.urandom(16), (request,), nonces))
    desk.net.run()
    return desk.net.drain()


def test_no_key_without_the_gates_yes_to_this_very_request(keys: Desk) -> None:
    request, other = keys.client.create_key("hot/1"), keys.client.create_key("hot/2")
    told: dict[int, Any] = {}
    keys.gate.decide = lambda member, question: (told.setdefault(member, question) is not None, "")
    assert refusals(make_key(keys, request)) == {"gate/not-asked"}
    assert {type(report) for report in consent(keys, other).values()} == {wire.Consented}
    assert refusals(make_key(keys, request)) == {"gate/not-asked"}
    assert {type(report) for report in consent(keys, request).values()} == {wire.Consented}
    only({j: reports[-1:] for j, reports in make_key(keys, request).items()}, wire.KeysActivated)
    info = told[2]["signerInfo"]
    assert (info["kind"], info["label"], info["signer_id"]) == ("KeyCreation", "hot/2", "signer-2")
    assert (info["participants"], info["tolerate"]) == ([1, 2, 3], 1)
    assert told[2]["requestInfo"]["payload"]["label"] == "hot/2"


def test_a_yes_to_a_key_expires(keys: Desk) -> None:
    request = keys.client.create_key()
    consent(keys, request)
    keys.net.advance(121)
    assert refusals(make_key(keys, request)) == {"gate/not-asked"}


def test_a_no_to_a_key_is_final(keys: Desk) -> None:
    keys.gate.decide = lambda member, question: (member != 3, "no such label")
    request = keys.client.create_key()
    for _ in range(2):
        reports = consent(keys, request)
        assert [type(reports[j]) for j in (1, 2)] == [wire.Consented] * 2
        assert (reports[3].rule, reports[3].reason) == ("gate", "no such label")
    assert {r.rule for r in make_key(keys, request)[3] if isinstance(r, wire.RequestRefused)} == {"gate"}


def test_the_audit_chain_says_what_gates_decided_about_keys(keys: Desk) -> None:
    def told(j: int) -> list[dict[str, Any]]:
        return [json.loads(entry.body) for entry in keys.net.members[j].audit]

    keys.gate.decide = lambda member, question: (member != 3, "no such label")
    before = [len(told(j)) for j in COMMITTEE]
    request = keys.client.create_key("hot/7")
    for _ in range(3):
        consent(keys, request)
    new = [told(j)[count:] for j, count in zip(COMMITTEE, before, strict=True)]
    asked = {"client": keys.client.kid, "label": "hot/7", "request": request.digest("testnet").hex()}
    yes = {"event": "consented", "gate": "signed", **asked}
    no = {"event": "refused", "rule": "gate", "reason": "no such label", **asked}
    shown = [[{name: fact for name, fact in entry.items() if name != "time"} for entry in one] for one in new]
    assert shown == [[yes], [yes], [no]]


def test_a_yes_to_a_signature_is_none_to_a_key(keys: Desk) -> None:
    keys.gate.alter = lambda member, call, reply: msgspec.structs.replace(
        keys.gate.reply(call.uid, reply.body.replace(b'"KeyCreation"', b'"Signing"')), uid=call.uid
    )
    assert {(r.rule, r.reason) for r in consent(keys, keys.client.create_key()).values()} == {
        ("gate/echo", "the answer is to something else: kind")
    }


def test_where_gates_are_not_asked_about_keys_consent_is_the_policys(desk: Desk) -> None:
    before = len(desk.net.members[1].gate_calls)
    reports = consent(desk, desk.client.create_key("hot/9"))
    assert {type(report) for report in reports.values()} == {wire.Consented}
    assert len(desk.net.members[1].gate_calls) == before
