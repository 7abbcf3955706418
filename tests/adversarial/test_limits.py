"""Limits in whole enclaves: what is charged, held and brought back, with races, restarts, clocks and lying stores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from enclave import wire
from enclave.attempts import MAX_ATTEMPTS
from enclave.audit import entry_hash
from enclave.counting_clock import Anchor
from enclave.errors import CallerError
from enclave.ledger_keeping import KEEP_EVERY_S, START
from policies.hours import Day, Hours
from policies.limits import Anomaly, Each, Limit, OnAnomaly, Reaction
from policies.model import Policy
from policies.requests import EthereumTransaction, HashBatch, signature_batches_path, signatures_path
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.fakes.clients import TestClient, TestGate, open_policy
from tests.fakes.enclaves import COORDINATOR, Clock, Disk, Net, authorizations_of
from tests.fakes.payloads import encoded_transaction


@dataclass
class LimitedDesk(Desk):
    """`taken`: presignatures of the batch that were named."""

    taken: int = 0


HOURLY = Limit(name="hourly", within="1h", signatures=3)
KEY = "hourly 3600s"


def limited(client: TestClient, *limits: Limit, on_anomaly: OnAnomaly | None = None) -> Policy:
    whole = open_policy(client)
    rule = msgspec.structs.replace(whole.rules[0], on_anomaly=on_anomaly)
    return msgspec.structs.replace(whole, rules=(rule,), limits=limits)


def make_desk(
    *limits: Limit, on_anomaly: OnAnomaly | None = None, gate_mode: str = "signed", n: int = 3
) -> LimitedDesk:
    clock = Clock()
    client, gate = TestClient(clock), TestGate(clock)
    policy = limited(client, *limits, on_anomaly=on_anomaly)
    net = Net(policy, gate, gate.keys, n=n, clock=clock, gate_mode=gate_mode)
    net.start()
    net.setup()
    key = net.keygen(client.create_key(n=n))[1].certificates[0][0].acknowledgement
    net.drain()
    desk = LimitedDesk(net, client, gate, key, b"")
    refill(desk)
    return desk


def refill(desk: LimitedDesk) -> None:
    desk.sid, desk.taken = desk.net.presign(COMMITTEE, 32)[1].sid, 0


def next_name(desk: LimitedDesk) -> wire.PresignatureName:
    desk.taken += 1
    return desk.name(desk.taken)


def request(desk: LimitedDesk) -> wire.ClientRequest:
    return desk.client.sign_hash(desk.key_id, hashlib.sha256(os.urandom(8)).digest())


def authorise(desk: LimitedDesk, asked: wire.ClientRequest | None = None) -> dict[int, list[Any]]:
    return desk.net.authorise(asked or request(desk), desk.key_id, COMMITTEE, next_name(desk))


def give(desk: LimitedDesk, reports: dict[int, list[Any]]) -> dict[int, list[Any]]:
    return desk.net.online(authorizations_of(reports), desk.key_id, COMMITTEE)


def refusals(reports: dict[int, list[Any]]) -> set[tuple[str, str]]:
    found = [report for told in reports.values() for report in told if isinstance(report, wire.RequestRefused)]
    return {(report.rule, report.reason) for report in found}


def signs(desk: LimitedDesk, asked: wire.ClientRequest | None = None) -> bool:
    """Whether a request is signed by everybody; where not, whether limits are why."""
    reports = authorise(desk, asked)
    if len(authorizations_of(reports)) < len(COMMITTEE):
        assert {rule for rule, _ in refusals(reports)} == {"policy/limits"}, reports
        return False
    shares = [
        report for told in give(desk, reports).values() for report in told if isinstance(report, wire.ShareReport)
    ]
    assert len(shares) == len(COMMITTEE)
    return True


def used(desk: LimitedDesk, j: int, key: str = KEY) -> int:
    return desk.net.members[j].core._counting.ledger.used(key)


def unknown(desk: LimitedDesk, j: int = 1) -> str:
    return desk.net.members[j].core._counting.keeping.unknown


def come_back(desk: LimitedDesk, *members: int, disk: Disk | None = None) -> None:
    for j in members:
        desk.net.reboot(j, disk)
        desk.net.presence(COMMITTEE)
        desk.net.run()
    desk.net.advance(31.0)  # requests from before the restart are refused
    refill(desk)


def test_three_pass_and_the_window_slides() -> None:
    desk = make_desk(HOURLY)
    assert [signs(desk) for _ in range(5)] == [True, True, True, False, False]
    desk.net.advance(3599)
    assert not signs(desk)
    desk.net.advance(1 + 113)
    assert [signs(desk) for _ in range(4)] == [True, True, True, False]


def test_a_charge_is_in_the_audit_entry_that_goes_with_the_share() -> None:
    desk = make_desk(HOURLY)
    assert signs(desk)
    entry = json.loads(desk.net.members[1].audit[-1].body)
    assert (entry["event"], entry["charged"], entry["counted_at"]) == ("share", ["1 " + KEY], int(desk.net.clock()))


def test_of_two_at_once_under_a_limit_with_room_for_one_one_passes() -> None:
    desk = make_desk(Limit(name="hourly", within="1h", signatures=1))
    first, second = authorise(desk), authorise(desk)
    assert len(authorizations_of(first)) == 3
    assert refusals(second) == {("policy/limits", "the limit hourly has room for 0 of 1, not for 1")}
    give(desk, first)
    assert [used(desk, j) for j in COMMITTEE] == [1, 1, 1]


def test_both_may_ask_their_gates_and_only_one_is_authorised() -> None:
    desk = make_desk(Limit(name="hourly", within="1h", signatures=1))
    calls: list[tuple[int, wire.CallGate]] = []
    desk.net.gate = lambda j, call: calls.append((j, call))
    assert authorizations_of(authorise(desk)) == authorizations_of(authorise(desk)) == ()
    assert len(calls) == 6
    for j, call in calls:
        desk.net.tell(j, desk.gate(j, call))
    desk.net.run()
    reports = desk.net.drain()
    assert len(authorizations_of(reports)) == 3
    assert {rule for rule, _ in refusals(reports)} == {"policy/limits"}


def test_a_gate_that_refuses_burns_nothing() -> None:
    desk = make_desk(Limit(name="hourly", within="1h", signatures=1))
    desk.gate.decide = lambda member, asked: (False, "no")
    for _ in range(3):
        assert {rule for rule, _ in refusals(authorise(desk))} == {"gate"}
    desk.gate.decide = lambda member, asked: (True, "")
    assert signs(desk)


def test_what_is_abandoned_or_expires_is_held_no_more() -> None:
    desk = make_desk(Limit(name="hourly", within="1h", signatures=1))
    ceremony = os.urandom(16)
    for j in COMMITTEE:
        desk.net.order(j, wire.SignOrder(ceremony, desk.key_id, request(desk), COMMITTEE, desk.name(1)))
    desk.net.run()
    assert [used(desk, j) for j in COMMITTEE] == [1, 1, 1]
    for j in COMMITTEE:
        desk.net.order(j, wire.AbandonOrder(ceremony))
    desk.net.run()
    desk.net.drain()
    assert [used(desk, j) for j in COMMITTEE] == [0, 0, 0]
    authorise(desk)
    desk.net.advance(31)
    assert signs(desk)


def test_an_attempt_too_many_holds_no_room() -> None:
    """Else one that orders it again before each expiry keeps others out for as long as the request is approved."""
    desk = make_desk(Limit(name="hourly", within="1h", signatures=1))
    asked = request(desk)
    for _ in range(MAX_ATTEMPTS):
        assert len(authorizations_of(authorise(desk, asked))) == 3
    desk.net.advance(29)
    reason = f"this request was attempted {MAX_ATTEMPTS} times"
    assert refusals(authorise(desk, asked)) == {("request/attempts", reason)}
    desk.net.advance(2)
    assert signs(desk)


def test_further_attempts_of_one_request_are_charged_once() -> None:
    desk = make_desk(Limit(name="hourly", within="1h", signatures=1))
    asked = request(desk)
    first = authorise(desk, asked)
    # One member alone is asked for its share.
    desk.net.order(1, wire.OnlineOrder(b"online-ceremony-", desk.key_id, authorizations_of(first)))
    desk.net.run()
    desk.net.drain()
    assert [used(desk, j) for j in COMMITTEE] == [1, 1, 1]
    second = desk.net.authorise(asked, desk.key_id, COMMITTEE, next_name(desk), after=b"online-ceremony-")
    assert len(authorizations_of(second)) == 3
    give(desk, second)
    assert [used(desk, j) for j in COMMITTEE] == [1, 1, 1]
    assert not signs(desk)


def test_a_batch_counts_for_all_of_its_hashes() -> None:
    desk = make_desk(HOURLY)

    def batch(count: int) -> dict[int, list[Any]]:
        hashes = tuple("0x" + hashlib.sha256(os.urandom(8)).hexdigest() for _ in range(count))
        body = HashBatch(hashes, os.urandom(8).hex(), tuple((0, i % 2) for i in range(count)))
        asked = desk.client.request(signature_batches_path(desk.key_id), body)
        names = tuple(next_name(desk) for _ in range(count))
        for j in COMMITTEE:
            desk.net.order(j, wire.BatchSignOrder(os.urandom(16), desk.key_id, asked, COMMITTEE, names))
        desk.net.run()
        return desk.net.drain()

    assert {rule for rule, _ in refusals(batch(4))} == {"policy/limits"}
    told = [report for reports in batch(3).values() for report in reports]
    signed = tuple(report.authorization for report in told if isinstance(report, wire.BatchAuthorized))
    for j in COMMITTEE:
        desk.net.order(j, wire.BatchOnlineOrder(os.urandom(16), desk.key_id, signed))
    desk.net.run()
    assert all(isinstance(report, wire.BatchShareReport) for reports in desk.net.drain().values() for report in reports)
    assert [used(desk, j) for j in COMMITTEE] == [3, 3, 3]
    assert not signs(desk)


def test_a_total_of_a_coin() -> None:
    daily = Limit(name="daily", within="24h", total=10**18, asset="eip155:1/native", each=(Each.LABEL,))
    desk = make_desk(daily)

    def send(value: int) -> bool:
        body = EthereumTransaction("0x" + encoded_transaction({6: value}).hex(), os.urandom(8).hex())
        return signs(desk, desk.client.request(signatures_path(desk.key_id), body))

    key = "daily 86400s label=hot/1"
    assert send(0)
    fee = used(desk, 1, key)
    assert fee > 0
    assert not send(10**18 - 2 * fee + 1)
    assert send(10**18 - 2 * fee)
    assert used(desk, 1, key) == 10**18
    # Of what is blind nothing can be said.
    assert not signs(desk)


# --- restarts and stores ---


@pytest.mark.parametrize("wait_s", [0.0, KEEP_EVERY_S + 1])
def test_a_restart_forgets_no_charge(wait_s: float) -> None:
    """From the audit chain alone, and from the sealed record with what came after it."""
    desk = make_desk(HOURLY)
    assert signs(desk)
    desk.net.advance(wait_s)
    kept = ("counters", "counters-0") in desk.net.members[1].store
    assert kept == bool(wait_s)
    assert signs(desk)
    come_back(desk, 1)
    come_back(desk, 2, 3)
    assert [used(desk, j) for j in COMMITTEE] == [2, 2, 2]
    assert [signs(desk), signs(desk)] == [True, False]
    come_back(desk, 1, 2, 3)
    assert not signs(desk)


def test_the_signer_process_restarts_while_its_enclave_runs_on() -> None:
    desk = make_desk(HOURLY)
    assert signs(desk)
    member = desk.net.members[2]
    member.core.dispatch.on_detached()
    member.core.effects.attach(lambda message: desk.net._said(member, message))
    desk.net.attach(2)
    desk.net.presence(COMMITTEE)
    desk.net.run()
    assert used(desk, 2) == 1


Tampering = Callable[[LimitedDesk, Disk], Disk]


def without_record(desk: LimitedDesk, disk: Disk) -> Disk:
    return Disk({place: record for place, record in disk.records.items() if place[0] != "counters"}, disk.audit)


def with_garbage(desk: LimitedDesk, disk: Disk) -> Disk:
    record = disk.records["counters", "counters-0"]
    altered = msgspec.structs.replace(record, sealed=record.sealed[:-1] + b"x")
    return Disk({**disk.records, ("counters", "counters-0"): altered}, disk.audit)


def with_other_record(desk: LimitedDesk, disk: Disk) -> Disk:
    stolen = msgspec.structs.replace(disk.records["peers", "peers"], kind="counters", name="counters-0")
    return Disk({**disk.records, ("counters", "counters-0"): stolen}, disk.audit)


@pytest.mark.parametrize("tamper", [without_record, with_garbage, with_other_record])
def test_whatever_record_is_shown_the_chain_counts(tamper: Tampering) -> None:
    desk = make_desk(HOURLY)
    assert [signs(desk), signs(desk), signs(desk)] == [True] * 3
    desk.net.advance(KEEP_EVERY_S + 1)
    for j in COMMITTEE:
        come_back(desk, j, disk=tamper(desk, desk.net.copy_disk(j)))
    assert [used(desk, j) for j in COMMITTEE] == [3, 3, 3]
    assert not signs(desk)


def test_an_old_record_with_the_present_chain_changes_nothing() -> None:
    desk = make_desk(HOURLY)
    assert signs(desk)
    desk.net.advance(KEEP_EVERY_S + 1)
    old = {j: desk.net.members[j].store["counters", "counters-0"] for j in COMMITTEE}
    assert [signs(desk), signs(desk)] == [True, True]
    desk.net.advance(KEEP_EVERY_S + 1)
    for j in COMMITTEE:
        disk = desk.net.copy_disk(j)
        assert disk.records["counters", "counters-0"] != old[j]
        come_back(desk, j, disk=Disk({**disk.records, ("counters", "counters-0"): old[j]}, disk.audit))
    assert not signs(desk)


def test_a_record_of_a_chain_that_was_put_back_is_not_believed() -> None:
    """A newer record with an older chain: the chain counts, and peers refuse it."""
    desk = make_desk(HOURLY)
    old = {j: desk.net.copy_disk(j) for j in COMMITTEE}
    assert signs(desk)
    desk.net.advance(KEEP_EVERY_S + 1)
    record = desk.net.members[2].store["counters", "counters-0"]
    mixed = Disk({**old[2].records, ("counters", "counters-0"): record}, old[2].audit)
    desk.net.reboot(2, mixed)
    desk.net.presence(COMMITTEE)
    desk.net.run()
    assert used(desk, 2) == 0
    assert [desk.net.members[i].core._links.get(COORDINATOR, 2) for i in (1, 3)] == [None, None]


def test_peers_learn_of_a_charge_within_a_second() -> None:
    """So a disk that is put back to before it is refused, although no minute has passed."""
    desk = make_desk(HOURLY)
    desk.net.advance(61)
    before = desk.net.copy_disk(2)
    assert signs(desk)
    desk.net.advance(1)
    desk.net.reboot(2, before)
    desk.net.presence(COMMITTEE)
    desk.net.run()
    assert [desk.net.members[i].core._links.get(COORDINATOR, 2) for i in (1, 3)] == [None, None]


def test_a_signer_process_that_never_says_that_a_charge_is_stored_gets_no_more() -> None:
    """Else peers would never learn of it, and a restart on a store without it would go unnoticed."""
    desk = make_desk(msgspec.structs.replace(HOURLY, signatures=100))
    desk.net.advance(61)
    desk.net.stores = lambda j, message: j != 1 or bool(message.records)
    before = desk.net.copy_disk(1)
    assert signs(desk)
    desk.net.advance(30)
    waiting = authorise(desk)
    assert signs(desk)
    desk.net.advance(1)
    reports = authorise(desk)
    assert [type(report) for report in (*reports[1], *reports[2])] == [wire.RequestRefused, wire.Authorized]
    ((rule, reason),) = refusals(reports)
    assert rule == "policy/limits"
    assert "for 31 s the signer process has not said that what was charged is stored" in reason
    # What was authorised before does not get its share either.
    shares = give(desk, waiting)
    assert [type(report) for report in (*shares[1], *shares[2])] == [wire.OnlineRefused, wire.ShareReport]
    # It says so again: within a second all is as before, and the peers know.
    desk.net.stores = lambda j, message: True
    assert not signs(desk)
    desk.net.advance(2)
    assert signs(desk)
    desk.net.advance(2)
    desk.net.reboot(1, before)
    desk.net.presence(COMMITTEE)
    desk.net.run()
    assert [desk.net.members[i].core._links.get(COORDINATOR, 1) for i in (2, 3)] == [None, None]


def test_a_store_that_is_slow_is_waited_for() -> None:
    """One that confirms late, but confirms, stops nothing."""
    desk = make_desk(msgspec.structs.replace(HOURLY, signatures=100))
    held: list[wire.Store] = []
    for _ in range(12):
        desk.net.stores = lambda j, message: j != 1 or bool(message.records) or held.append(message) or False
        assert signs(desk)
        desk.net.advance(20)
        for message in held:
            desk.net.tell(1, wire.Stored(message.ticket))
        held.clear()
        desk.net.run()


# Facts that no enclave wrote: hashed as a chain, which takes no key.
INVENTED = {
    "no-number": {"counted_at": "x"},
    "no-window": {"counted_at": 1, "charged": ["1 a"]},
    "no-amount": {"counted_at": 1, "charged": ["x hourly 3600s"]},
    "negative": {"counted_at": 1, "charged": ["-9 hourly 3600s"]},
}


def invent(page: str, audit: list[wire.AuditEntry], entries: list[wire.AuditEntry]) -> list[wire.AuditEntry]:
    """`entries` with other bodies and the hashes that belong to them."""
    told, first, body = [], entries[0].seq, msgspec.json.encode({"time": 1} | INVENTED[page])
    head = audit[first - 2].hash if first > 1 else START.head
    for entry in entries:
        head = entry_hash(head, entry.seq, body)
        told.append(msgspec.structs.replace(entry, body=body, hash=head))
    return told


@pytest.mark.parametrize("page", ["none", "altered", "gap", *INVENTED])
def test_a_store_that_hands_over_another_chain_leaves_limits_refused(page: str) -> None:
    desk = make_desk(HOURLY)
    assert signs(desk)
    net = desk.net
    honest = net.tell

    def lie(j: int, message: Any) -> None:
        if isinstance(message, wire.AuditPage) and j == 1:
            entries = list(message.entries)
            if page == "none":
                entries = []
            elif page == "altered":
                less = [entry.body.replace(b'"1 hourly', b'"0 hourly') for entry in entries]
                entries = [msgspec.structs.replace(entry, body=body) for entry, body in zip(entries, less, strict=True)]
            elif page == "gap":
                entries = [entry for entry in entries if b"charged" not in entry.body]
            else:
                entries = invent(page, net.members[1].audit, entries)
            message = wire.AuditPage(tuple(entries))
        honest(j, message)

    net.tell = lie  # type: ignore[method-assign]
    come_back(desk, 1)
    reports = authorise(desk)
    (refused,) = [report for report in reports[1] if isinstance(report, wire.RequestRefused)]
    assert refused.rule == "policy/limits"
    assert "what was signed before is not known" in refused.reason
    # The store is whole again, and nothing has to be restarted.
    net.tell = honest  # type: ignore[method-assign]
    desk.net.advance(31)
    assert used(desk, 1) == 0
    assert signs(desk)
    assert used(desk, 1) == 2


def test_a_page_that_nobody_asked_for_is_not_taken() -> None:
    desk = make_desk(HOURLY)
    with pytest.raises(CallerError, match="nobody asked for"):
        desk.net.members[1].core.dispatch.handle(wire.AuditPage(()))


def test_without_limits_nothing_is_read_or_charged() -> None:
    desk = make_desk()
    assert signs(desk)
    come_back(desk, 1)
    assert signs(desk)
    assert not any(isinstance(message, wire.WantAudit) for message in desk.net.members[1].said)
    assert b"counted_at" not in desk.net.members[1].audit[-1].body


# --- other policies ---


def reload(desk: LimitedDesk, *limits: Limit) -> None:
    for j in COMMITTEE:
        desk.net.policies[j] = limited(desk.client, *limits)
        desk.net.members[j].core.reload.run()


def at_most(signatures: int) -> Limit:
    return msgspec.structs.replace(HOURLY, signatures=signatures)


def test_a_reload_keeps_what_was_counted() -> None:
    desk = make_desk(HOURLY)
    assert [signs(desk), signs(desk)] == [True, True]
    reload(desk, at_most(2))
    assert not signs(desk)
    reload(desk, at_most(4))
    assert [signs(desk), signs(desk), signs(desk)] == [True, True, False]
    # Whatever stood between.
    reload(desk)
    reload(desk, at_most(4))
    assert not signs(desk)


def test_a_limit_that_comes_with_a_reload_holds_for_what_is_authorised_already() -> None:
    desk = make_desk()
    reports = authorise(desk)
    reload(desk, at_most(0))
    given = give(desk, reports)
    assert {type(report) for told in given.values() for report in told} == {wire.OnlineRefused}
    reload(desk, at_most(1))
    # Only now is the chain read, and what is authorised waits for nothing.
    assert signs(desk)
    assert not signs(desk)


def test_what_is_held_is_not_in_its_own_way_after_a_reload() -> None:
    desk = make_desk(at_most(1))
    reports = authorise(desk)
    reload(desk, at_most(1), Limit(name="daily", within="1d", signatures=1))
    assert all(isinstance(report, wire.ShareReport) for told in give(desk, reports).values() for report in told)
    assert [used(desk, j) for j in COMMITTEE] == [used(desk, j, "daily 86400s") for j in COMMITTEE] == [1, 1, 1]


# --- clocks ---


def test_a_clock_that_is_set_back_while_all_are_down_reopens_nothing() -> None:
    """Nor does it keep a window shut: limits count on from where they were."""
    desk = make_desk(HOURLY)
    assert [signs(desk), signs(desk), signs(desk)] == [True] * 3
    desk.net.advance(3000)
    assert not signs(desk)
    desk.net.clock.now_s -= 7200
    come_back(desk, 1, 2, 3)
    assert not signs(desk)
    # What passed after the last charge or record of counters, and before the stop, is not known to have passed.
    desk.net.advance(3600 + 113)
    assert signs(desk)


@pytest.mark.parametrize("seconds", [7200.0, -7200.0])
def test_a_clock_that_is_set_while_they_run_changes_nothing(seconds: float) -> None:
    desk = make_desk(HOURLY)
    assert [signs(desk), signs(desk), signs(desk)] == [True] * 3
    desk.net.wall_set_by_s = seconds
    desk.client.clock = desk.gate.clock = desk.net.wall
    desk.net.advance(61)
    (entry,) = [json.loads(entry.body) for entry in desk.net.members[1].audit if b'"clock"' in entry.body]
    assert entry["set_by_s"] == seconds
    for _ in range(2):
        come_back(desk, 1, 2, 3)
        assert not signs(desk)
    desk.net.advance(3600 + 113)
    assert signs(desk)


DAY_S = 86_400.0


@pytest.mark.parametrize("first_s", [DAY_S, -DAY_S, 0.0])
@pytest.mark.parametrize("then_s", [DAY_S, -DAY_S, 0.0])
def test_a_clock_that_is_set_while_it_is_down_reopens_nothing(first_s: float, then_s: float) -> None:
    """Its peers say how long it was away (SPEC 7.8), and nobody has to do anything."""
    desk = make_desk(HOURLY)
    assert [signs(desk), signs(desk), signs(desk)] == [True] * 3
    for wrong_s in (first_s, then_s, 0.0):
        desk.net.own_set_by_s[1] = wrong_s
        desk.net.reboot(1)
        desk.net.presence(COMMITTEE)
        desk.net.run()
        desk.net.own_set_by_s.clear()
        desk.net.advance(61)
    come_back(desk, 1)
    assert used(desk, 1) == 3
    assert not signs(desk)
    desk.net.advance(3600 + 113)
    assert signs(desk)


def test_a_peer_that_lies_about_its_clock_is_one_of_three_and_changes_nothing() -> None:
    desk = make_desk(HOURLY, n=4)
    assert [signs(desk), signs(desk), signs(desk)] == [True] * 3
    for lie_s in (7200.0, -7200.0, 20.0, -20.0):
        desk.net.lies_s[2], desk.net.own_set_by_s[1] = lie_s, max(lie_s, 0.0)
        desk.net.reboot(1)
        desk.net.presence((1, 2, 3, 4))
        desk.net.run()
        desk.net.own_set_by_s.clear()
        assert unknown(desk) == ""
        assert used(desk, 1) == 3
        desk.net.advance(61)
    desk.net.reboot(1)
    desk.net.presence((1, 2, 3, 4))
    desk.net.advance(31)
    refill(desk)
    assert not signs(desk)
    desk.net.advance(3600 + 113)
    assert signs(desk)


@pytest.mark.parametrize("off_s", [7200.0, -7200.0])
def test_what_is_limited_waits_until_enough_peers_agree(off_s: float) -> None:
    """In two of three, one wrong clock of the two peers is enough; a clock that is set right, too."""
    desk = make_desk(HOURLY)
    assert signs(desk)
    desk.net.lies_s[2] = off_s
    come_back(desk, 1)
    ((rule, reason),) = refusals(authorise(desk))
    side = "behind" if off_s > 0 else "ahead of"
    assert rule == "policy/limits"
    assert reason == (
        "what was signed before is not known: for how long this enclave was away is not sure: its peers' clocks are "
        f"7200 s apart (this one is 7200 s {side} signer-2, 0 s ahead of signer-3). Set the wrong one right"
    )
    # Its enclave notices that its clock was set, and drops its memory.
    desk.net.lies_s.clear()
    come_back(desk, 2)
    assert [signs(desk) for _ in range(3)] == [True, True, False]
    # Peers that disagree later are nothing to an enclave that runs.
    desk.net.lies_s[3] = off_s
    come_back(desk, 3)
    assert unknown(desk) == ""
    desk.net.advance(3600 + 113)
    assert unknown(desk) == ""


def test_a_start_without_links_knows_nothing_and_waits_for_them() -> None:
    desk = make_desk(HOURLY)
    assert signs(desk)
    desk.net.reboot(1)
    desk.net.run()
    for online, linked in (((1,), 0), ((1, 3), 1)):
        desk.net.presence(online)
        desk.net.run()
        assert unknown(desk).endswith(
            f"is told by 2 peers, and there is a link with {linked}: see that they are online"
        )
    desk.net.presence(COMMITTEE)
    desk.net.run()
    assert (unknown(desk), used(desk, 1)) == ("", 1)


def test_the_chain_knows_at_once_that_peers_clocks_were_set() -> None:
    """All clocks are set forward while all run, the signer's own once more while it is down, within the minute."""
    desk = make_desk(HOURLY)
    net = desk.net
    assert [signs(desk), signs(desk), signs(desk)] == [True] * 3
    net.wall_set_by_s = 7200.0
    desk.client.clock = desk.gate.clock = net.wall
    for j in (2, 3):
        net.members[j].core._links.renew()
    net.run()
    told = [json.loads(entry.body) for entry in net.members[1].audit if b'"clock"' in entry.body]
    assert told[-1]["peers_at"] - told[-1]["counted_at"] == 7200
    net.own_set_by_s[1] = 7200.0
    come_back(desk, 1)
    net.own_set_by_s.clear()
    net.advance(61)
    come_back(desk, 1)
    assert used(desk, 1) == 3
    assert not signs(desk)
    net.advance(3600 + 113)
    assert signs(desk)


def test_links_are_made_anew_where_a_clock_was_slewed() -> None:
    """A machine comes up with a clock that is 60 s behind, and its kernel lets it run faster until it is right."""
    desk = make_desk(HOURLY)
    net = desk.net
    net.own_set_by_s[1] = -60.0
    net.reboot(1)
    net.presence(COMMITTEE)
    net.run()
    net.own_set_by_s.clear()
    net.slewed_s[1] = 60.0
    before = {j: net.members[j].core._links.get(COORDINATOR, 1) for j in (2, 3)}
    offs = {j: net.members[j].core._peer_clocks.gauges()["clock_off|signer-1|ahead"] for j in (2, 3)}
    assert offs == {2: 60, 3: 60}
    net.advance(61)
    for j in (2, 3):
        assert net.members[j].core._peer_clocks.gauges()["clock_off|signer-1|ahead"] == 0
        assert net.members[j].core._links.get(COORDINATOR, 1) not in (None, before[j])
    refill(desk)
    assert signs(desk)


def test_a_chain_of_before_is_told_of_the_peers_at_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a clock could be set forward at every start until something is charged."""
    desk = make_desk(HOURLY)
    with monkeypatch.context() as before:
        before.setattr(Anchor, "facts", lambda now: {"counted_at": now.counted_s})
        assert signs(desk)
    desk.net.advance(100)
    desk.net.members[1].store = {
        place: record for place, record in desk.net.members[1].store.items() if place[0] != "counters"
    }
    come_back(desk, 1)
    (entry,) = [json.loads(entry.body) for entry in desk.net.members[1].audit if b'"clock"' in entry.body]
    assert (entry["set_by_s"], entry["peers_at"] - entry["counted_at"]) == (1, 1)


def test_rules_on_hours_permit_nothing_where_the_peers_contradict_the_clock() -> None:
    desk = make_desk()
    always = Hours(tuple(Day), "00:00", "24:00")
    policy = limited(desk.client)
    rule = msgspec.structs.replace(policy.rules[0], hours=(always,))
    desk.net.policies[1] = msgspec.structs.replace(policy, rules=(rule,))
    desk.net.members[1].core.reload.run()
    assert signs(desk)
    for off_s, told in ((40.0, "ahead of"), (-25.0, "")):
        desk.net.own_set_by_s[1] = off_s
        reports = authorise(desk)
        assert refusals(reports) == (
            {
                (
                    "policy/hours",
                    "this machine's clock does not agree with its peers' (this one is 40 s ahead of signer-2, 40 s "
                    "ahead of signer-3). Set the wrong one right",
                )
            }
            if told
            else set()
        )
    desk.net.own_set_by_s.clear()
    assert signs(desk)


# --- anomalies ---


def test_a_first_seen_destination_is_told_to_the_gate_once() -> None:
    desk = make_desk(on_anomaly=OnAnomaly(first_seen_destination=Reaction.ASK_GATE))
    asked: list[Any] = []
    desk.gate.decide = lambda member, seen: (asked.append(seen["signerInfo"].get("anomalies")) or True, "")

    def send(to: str) -> None:
        body = EthereumTransaction("0x" + encoded_transaction({5: bytes.fromhex(to)}).hex(), os.urandom(8).hex())
        assert signs(desk, desk.client.request(signatures_path(desk.key_id), body))

    send("11" * 20)
    send("11" * 20)
    come_back(desk, 1, 2, 3)
    send("11" * 20)
    send("22" * 20)
    new = [Anomaly.FIRST_SEEN_DESTINATION.value]
    assert asked == [new] * 3 + [None] * 6 + [new] * 3
    assert desk.net.members[1].core.status().counters["anomalies|first-seen-destination"] == 1
    assert any("first-seen-destination" in line for line in desk.net.members[1].logged)


def test_who_must_ask_the_gate_and_has_none_refuses() -> None:
    desk = make_desk(on_anomaly=OnAnomaly(first_seen_destination=Reaction.ASK_GATE), gate_mode="none")
    refused = ("policy/anomaly", "first-seen-destination, and there is no gate to ask")
    assert refusals(authorise(desk)) == {refused}


def test_a_burst_of_refusals_is_seen_and_refused_by_rules_that_say_so() -> None:
    desk = make_desk(on_anomaly=OnAnomaly(refusal_burst=Reaction.REFUSE))
    desk.gate.decide = lambda member, asked: (False, "no")
    for _ in range(20):
        authorise(desk)
    desk.gate.decide = lambda member, asked: (True, "")
    assert {rule for rule, _ in refusals(authorise(desk))} == {"policy/anomaly"}
    assert desk.net.members[1].core.status().counters["anomalies|refusal-burst"] == 1
    desk.net.advance(301)
    refill(desk)
    assert len(authorizations_of(authorise(desk))) == 3


def test_a_burst_is_not_kept_up_by_the_refusals_that_it_causes() -> None:
    """Clients go on asking, and nothing is wrong any more: after five minutes they are served."""
    desk = make_desk(on_anomaly=OnAnomaly(refusal_burst=Reaction.REFUSE))
    desk.gate.decide = lambda member, asked: (False, "no")
    for _ in range(20):
        authorise(desk)
    desk.gate.decide = lambda member, asked: (True, "")
    for _ in range(100):
        assert {rule for rule, _ in refusals(authorise(desk))} == {"policy/anomaly"}
        desk.net.advance(3)
    refill(desk)
    assert len(authorizations_of(authorise(desk))) == 3


def test_one_refused_request_ordered_again_and_again_is_no_burst() -> None:
    desk = make_desk(on_anomaly=OnAnomaly(refusal_burst=Reaction.REFUSE))
    desk.gate.decide = lambda member, asked: (False, "no")
    asked = request(desk)
    for _ in range(25):
        authorise(desk, asked)
    desk.gate.decide = lambda member, asked: (True, "")
    assert len(authorizations_of(authorise(desk))) == 3


def test_a_gate_that_becomes_slow_is_told_and_refused_by_rules_that_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long each exchange takes is what the enclave itself measures."""
    desk = make_desk(on_anomaly=OnAnomaly(slow_gate=Reaction.REFUSE))
    now_ns = [0]
    monkeypatch.setattr("enclave.asking.time.perf_counter_ns", lambda: now_ns[0])

    def signs_in(took_ms: int) -> set[str]:
        desk.gate.decide = lambda member, asked: (now_ns.__setitem__(0, now_ns[0] + took_ms * 10**6) or True, "")
        return {rule for rule, _ in refusals(authorise(desk))}

    assert [signs_in(300) for _ in range(6)] == [set()] * 6
    while not (refused := signs_in(2000)):
        assert desk.taken < 30
    assert refused == {"policy/anomaly"}
    assert desk.net.members[1].core.status().counters["anomalies|slow-gate"] == 1
    desk.net.advance(301)
    refill(desk)
    assert signs_in(300) == set()


def test_a_rate_that_jumps_is_told_to_the_gate() -> None:
    desk = make_desk(on_anomaly=OnAnomaly(rate_jump=Reaction.ASK_GATE))
    told: list[Any] = []
    desk.gate.decide = lambda member, asked: (told.append(asked["signerInfo"].get("anomalies")) or True, "")
    for _ in range(21):
        assert signs(desk)
    assert told == [None] * 60 + [[Anomaly.RATE_JUMP.value]] * 3
    assert desk.net.members[1].core.status().counters["anomalies|rate-jump"] == 1
