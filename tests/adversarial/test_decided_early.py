"""Who has requests decided early and signed late: what the policy looks at then, and what it counts only once."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any

from enclave import wire
from policies.limits import Anomaly, Limit, OnAnomaly, Reaction
from policies.requests import EthereumTransaction, HashBatch, signature_batches_path, signatures_path
from tests.adversarial.conftest import COMMITTEE
from tests.adversarial.test_freezes import held_gate, let_go
from tests.adversarial.test_limits import (
    LimitedDesk,
    authorise,
    give,
    limited,
    make_desk,
    next_name,
    refill,
    refusals,
    request,
    used,
)
from tests.fakes.enclaves import authorizations_of
from tests.fakes.payloads import encoded_transaction

JUMP = 20  # so many signatures of one label in five minutes are no jump
RATE = "~rate 300s label=hot/1"


def decide(desk: LimitedDesk, asked: wire.ClientRequest) -> None:
    """Have it decided: everybody approves it, and nothing is authorised, since nobody knows that presignature."""
    unknown = wire.PresignatureName(b"\1" * 32, 1)
    reports = desk.net.authorise(asked, desk.key_id, COMMITTEE, unknown)
    assert {type(report) for told in reports.values() for report in told} == {wire.UnknownPresignature}


def all_signed(desk: LimitedDesk, reports: dict[int, list[Any]]) -> bool:
    given = give(desk, reports)
    return [type(report) for told in given.values() for report in told] == [wire.ShareReport] * len(COMMITTEE)


def reload(desk: LimitedDesk, on_anomaly: OnAnomaly | None, *limits: Limit) -> None:
    for j in COMMITTEE:
        desk.net.policies[j] = limited(desk.client, *limits, on_anomaly=on_anomaly)
        desk.net.members[j].core.reload.run()


def test_a_rate_cannot_jump_by_requests_that_were_decided_before_it_did() -> None:
    desk = make_desk(on_anomaly=OnAnomaly(rate_jump=Reaction.REFUSE))
    asked = [request(desk) for _ in range(JUMP + 2)]
    for one in asked:
        decide(desk, one)
    for one in asked[:JUMP]:
        assert all_signed(desk, authorise(desk, one))
    for one in asked[JUMP:]:
        assert refusals(authorise(desk, one)) == {("policy/anomaly", "the rule everything refuses on rate-jump")}
    # It was not decided for good: once the rate is as usual, it is signed.
    desk.net.advance(311)
    refill(desk)
    assert all_signed(desk, authorise(desk, asked[JUMP]))


def test_authorizations_count_for_the_rate_before_anything_is_signed() -> None:
    desk = make_desk(on_anomaly=OnAnomaly(rate_jump=Reaction.REFUSE))
    asked = [request(desk) for _ in range(JUMP + 2)]
    for one in asked:
        decide(desk, one)
    reports = [authorise(desk, one) for one in asked]
    assert [len(authorizations_of(told)) for told in reports] == [3] * JUMP + [0, 0]
    # What was authorised is signed: its presignature may be spent elsewhere already.
    assert all(all_signed(desk, told) for told in reports[:JUMP])
    assert [used(desk, j, RATE) for j in COMMITTEE] == [JUMP] * 3


def test_a_gate_that_was_not_told_of_a_jump_is_asked_again_by_itself() -> None:
    """As in an honest burst with a slow gate."""
    desk = make_desk(on_anomaly=OnAnomaly(rate_jump=Reaction.ASK_GATE))
    answers = desk.gate.alter
    held = held_gate(desk)
    told: list[Any] = []
    desk.gate.decide = lambda member, seen: (told.append(seen["signerInfo"].get("anomalies")) or True, "")
    for _ in range(JUMP + 2):
        assert authorise(desk) == {j: [] for j in desk.net.members}
    desk.gate.alter = answers
    reports = let_go(desk, held)
    assert [type(report) for j in COMMITTEE for report in reports[j]] == [wire.Authorized] * (JUMP + 2) * 3
    assert told.count(None) == (JUMP + 2) * 3
    assert told.count([Anomaly.RATE_JUMP.value]) == 2 * 3
    assert desk.net.members[1].core.status().counters["anomalies|rate-jump"] == 2


def test_a_gate_that_says_no_to_what_it_is_now_told_is_believed() -> None:
    desk = make_desk(on_anomaly=OnAnomaly(rate_jump=Reaction.ASK_GATE))
    late = request(desk)
    decide(desk, late)
    for _ in range(JUMP):
        assert all_signed(desk, authorise(desk))
    desk.gate.decide = lambda member, seen: ("anomalies" not in seen["signerInfo"], "not now")
    assert {rule for rule, _ in refusals(authorise(desk, late))} == {"gate"}


def test_a_burst_of_refusals_stops_what_was_decided_before_it() -> None:
    desk = make_desk(on_anomaly=OnAnomaly(refusal_burst=Reaction.REFUSE))
    asked, authorised = request(desk), authorise(desk)
    decide(desk, asked)
    desk.gate.decide = lambda member, seen: (False, "no")
    for _ in range(20):
        authorise(desk)
    assert {rule for rule, _ in refusals(authorise(desk, asked))} == {"policy/anomaly"}
    assert all_signed(desk, authorised)


def test_a_destination_that_was_forgotten_is_told_to_the_gate() -> None:
    desk = make_desk(on_anomaly=OnAnomaly(first_seen_destination=Reaction.ASK_GATE))

    def send(to: bytes) -> wire.ClientRequest:
        body = EthereumTransaction("0x" + encoded_transaction({5: to}).hex(), os.urandom(8).hex())
        return desk.client.request(signatures_path(desk.key_id), body)

    assert all_signed(desk, authorise(desk, send(b"\x11" * 20)))
    late = send(b"\x11" * 20)
    decide(desk, late)
    for j in COMMITTEE:
        desk.net.members[j].core._counting.ledger.destinations.clear()
    told: list[Any] = []
    desk.gate.decide = lambda member, seen: (told.append(seen["signerInfo"].get("anomalies")) or True, "")
    assert all_signed(desk, authorise(desk, late))
    assert told == [[Anomaly.FIRST_SEEN_DESTINATION.value]] * 3


def test_what_was_charged_does_not_stand_in_the_way_of_its_own_further_attempt() -> None:
    """Also under another policy, and where the own signatures alone would be a jump."""
    one = Limit(name="hourly", within="1h", signatures=1)
    watch = OnAnomaly(rate_jump=Reaction.REFUSE)
    desk = make_desk(one, on_anomaly=watch)
    for _ in range(2):
        refill(desk)
        asked = request(desk)
        first = authorise(desk, asked)
        # One member alone is asked for its share.
        desk.net.order(1, wire.OnlineOrder(b"online-ceremony-", desk.key_id, authorizations_of(first)))
        desk.net.run()
        assert [type(report) for report in desk.net.drain()[1]] == [wire.ShareReport]
        second = desk.net.authorise(asked, desk.key_id, COMMITTEE, next_name(desk), after=b"online-ceremony-")
        assert len(authorizations_of(second)) == 3
        reload(desk, watch, one, Limit(name="daily", within="1d", signatures=1))
        assert all_signed(desk, second)
        assert [used(desk, j, "hourly 3600s") for j in COMMITTEE] == [1, 1, 1]
        desk.net.advance(24 * 3600 * 33 // 32 + 1)


def test_a_reload_while_a_share_is_computed_counts_it_once() -> None:
    """Its presignatures are spent: where the new policy permits it, it is not refused for itself."""
    one = Limit(name="hourly", within="1h", signatures=17)
    desk = make_desk(one)
    hashes = tuple("0x" + hashlib.sha256(os.urandom(8)).hexdigest() for _ in range(17))
    asked = desk.client.request(
        signature_batches_path(desk.key_id), HashBatch(hashes, os.urandom(8).hex(), tuple(() for _ in hashes))
    )
    names = tuple(next_name(desk) for _ in hashes)
    for j in COMMITTEE:
        desk.net.order(j, wire.BatchSignOrder(os.urandom(16), desk.key_id, asked, COMMITTEE, names))
    desk.net.run()
    told = [report for reports in desk.net.drain().values() for report in reports]
    signed = tuple(report.authorization for report in told if isinstance(report, wire.BatchAuthorized))
    assert len(signed) == 3
    step = desk.net.members[1].core._authoriser.online
    pause, reloaded = step._holdings.pause, []

    async def reload_first() -> None:
        reload(desk, None, one, Limit(name="daily", within="1d", signatures=17))
        reloaded.append(True)
        await pause()

    step._holdings = dataclasses.replace(step._holdings, pause=reload_first)
    for j in COMMITTEE:
        desk.net.order(j, wire.BatchOnlineOrder(os.urandom(16), desk.key_id, signed))
    desk.net.run()
    given = desk.net.drain()
    assert reloaded == [True]
    assert [type(report) for j in COMMITTEE for report in given[j]] == [wire.BatchShareReport] * 3, given
    assert used(desk, 1) == 17
