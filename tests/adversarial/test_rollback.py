"""Disks put back, memory put back, copies of a signer started: what whole enclaves make of it (SPEC 0.7)."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import msgspec
import pytest

from enclave import wire
from enclave.audit import ChainEnd
from enclave.errors import RolledBack
from enclave.standing import NOTICES, NOTICES_PERIODS, PERIOD_S, SAVE_EVERY_S
from policies.acceptance import AcceptedState
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.adversarial.test_signing import finish, only, verify
from tests.fakes.enclaves import COORDINATOR, Disk, Member, authorizations_of

RETRY_S = 31.0
EMPTY = Disk({}, ())


def sign(desk: Desk, l: int, text: bytes = b"message") -> None:
    """A signature with presignature `l` of the desk's batch."""
    h = hashlib.sha256(text).digest()
    reports = desk.net.authorise(desk.client.sign_hash(desk.key_id, h), desk.key_id, COMMITTEE, desk.name(l))
    verify(desk, finish(desk, authorizations_of(reports)), h)


def come_back(desk: Desk, j: int, disk: Disk | None = None) -> None:
    desk.net.reboot(j, disk)
    desk.net.presence(COMMITTEE)
    desk.net.run()


def links(desk: Desk, j: int) -> dict[int, tuple[bool, str]]:
    """What everybody else's last report says of its link with `j`: up, and the reason."""
    found = {}
    for i, reports in desk.net.drain().items():
        mine = [report for report in reports if isinstance(report, wire.LinkReport) and report.peer == j]
        if i != j and mine:
            found[i] = (mine[-1].up, mine[-1].reason)
    return found


def events(member: Member) -> list[dict[str, Any]]:
    return [json.loads(entry.body) for entry in member.audit]


def linked(desk: Desk, j: int) -> list[bool]:
    """Whether each other signer has a link with `j`."""
    return [desk.net.members[i].core._links.get(COORDINATOR, j) is not None for i in COMMITTEE if i != j]


def boot_of(desk: Desk, j: int) -> str:
    return desk.net.members[j].core._session.boot_nonce.hex()[:16]


def test_an_old_disk_is_refused_by_every_peer_and_the_right_one_taken(desk: Desk) -> None:
    net = desk.net
    old = net.copy_disk(2)
    sign(desk, 1)
    net.advance(PERIOD_S)  # states are told once a minute
    today = net.copy_disk(2)
    net.drain()
    come_back(desk, 2, old)
    shown = links(desk, 2)
    boot, was = boot_of(desk, 2), len(old.audit)
    command = f"run: keymoot enclave accept-rollback signer-2 --version {was} --boot {boot}"
    assert sorted(shown) == [1, 3]
    for up, reason in shown.values():
        assert not up
        assert f"signer-2 has started with state {was}, below {len(today.audit)}" in reason
        assert reason.endswith(command)
    assert linked(desk, 2) == [False, False]
    # Nothing is done with it.
    nonces = net.nonces(COMMITTEE, "presign")
    for j in COMMITTEE:
        net.order(j, wire.PresignOrder(b"presign-ceremony", COMMITTEE, 2, nonces))
    net.run()
    assert {type(report) for j in (1, 3) for report in net.drain()[j]} == {wire.OrderRefused}
    come_back(desk, 2, today)
    assert linked(desk, 2) == [True, True]
    assert sorted(net.presign(COMMITTEE, 2)) == [1, 2, 3]


def test_it_is_said_once_in_the_audit_chain_and_counted_and_shown(desk: Desk) -> None:
    old = desk.net.copy_disk(2)
    sign(desk, 1)
    desk.net.advance(PERIOD_S)
    come_back(desk, 2, old)
    for _ in range(5):
        desk.net.advance(RETRY_S)
    told = [event for event in events(desk.net.members[1]) if event["event"] == "peer-rolled-back"]
    assert len(told) == 1
    assert (told[0]["peer"], told[0]["version"], told[0]["boot"]) == ("signer-2", len(old.audit), boot_of(desk, 2))
    status = desk.net.members[1].core.status()
    assert status.counters["peer_states|peer-rolled-back"] == 1
    assert status.counters["frames_refused|rolled-back"] > 1  # tried again and again
    gauges = {j: [g for g in desk.net.members[j].core.status().gauges if g.startswith("peer_")] for j in COMMITTEE}
    assert gauges == {1: ["peer_refused|signer-2|rolled-back"], 2: [], 3: ["peer_refused|signer-2|rolled-back"]}


def test_an_accepted_state_brings_the_link_back_by_itself_and_serves_once(desk: Desk) -> None:
    net = desk.net
    old = net.copy_disk(2)
    sign(desk, 1)
    net.advance(PERIOD_S)
    come_back(desk, 2, old)
    word = (AcceptedState("signer-2", len(old.audit), boot_of(desk, 2)),)
    net.accepted[1] = word
    net.advance(RETRY_S)
    assert linked(desk, 2) == [True, False]  # each operator's word is for its own enclave
    net.accepted[3] = word
    net.advance(RETRY_S)
    assert linked(desk, 2) == [True, True]
    assert [event["event"] for event in events(net.members[1])].count("peer-accepted") == 1
    assert sorted(net.presign(COMMITTEE, 2)) == [1, 2, 3]
    net.advance(PERIOD_S)
    # The same old disk once more: the word was for that one boot.
    come_back(desk, 2, old)
    assert linked(desk, 2) == [False, False]


def test_what_peers_have_seen_survives_their_own_restart(desk: Desk) -> None:
    old = desk.net.copy_disk(2)
    sign(desk, 1)
    desk.net.advance(PERIOD_S)
    come_back(desk, 1)
    come_back(desk, 3)
    come_back(desk, 2, old)
    assert linked(desk, 2) == [False, False]


def test_an_empty_disk_is_an_old_disk(desk: Desk) -> None:
    desk.net.advance(PERIOD_S)
    come_back(desk, 2, EMPTY)
    assert linked(desk, 2) == [False, False]


def test_an_old_disk_that_went_on_by_itself_past_what_was_seen(desk: Desk) -> None:
    """Offline, on the old disk, decisions are made until its chain is longer than what the peers have seen."""
    net = desk.net
    old = net.copy_disk(2)
    sign(desk, 1)
    net.advance(PERIOD_S)
    net.presence((1, 3))
    net.run()
    net.reboot(2, old)
    net.run()
    longer = len(net.members[1].audit) + 20
    desk.gate.decide = lambda member, request: (False, "never")
    while len(net.members[2].audit) < longer:
        request = desk.client.sign_hash(desk.key_id, bytes(31) + b"\1")
        net.order(2, wire.SignOrder(b"o" * 16, desk.key_id, request, COMMITTEE, desk.name(2)))
        net.run()
    net.advance(PERIOD_S)
    assert net.members[2].core._audit.stored.version > longer
    net.presence(COMMITTEE)
    net.run()
    assert linked(desk, 2) == [False, False]


def test_what_was_not_on_disk_was_not_told_so_a_crash_is_no_rollback(desk: Desk) -> None:
    """The last entries are lost with the machine: no peer has heard of them."""
    net = desk.net
    before = net.copy_disk(2)
    sign(desk, 1)
    come_back(desk, 2, before)
    assert linked(desk, 2) == [True, True]


def test_a_signer_process_that_stores_no_entry_is_not_believed_by_saying_nothing(desk: Desk) -> None:
    """The state told is what the store has confirmed: without its word the old one is told again."""
    net = desk.net
    stored = net.members[2].core._audit.stored
    sign(desk, 1)
    net.stores = lambda j, message: j != 2
    net.advance(PERIOD_S)
    assert net.members[2].core._audit.stored == stored
    assert net.members[1].core._audit.stored.version > stored.version


# --- what the peer's own store says of others ---


def test_a_signer_process_that_withholds_what_was_seen_is_in_the_audit_chain(desk: Desk) -> None:
    """Its enclave has to believe what it sees; the other peers still refuse."""
    net = desk.net
    old = net.copy_disk(2)
    sign(desk, 1)
    net.advance(PERIOD_S)
    mine = net.copy_disk(1)
    come_back(desk, 1, Disk({key: record for key, record in mine.records.items() if key[0] != "peers"}, mine.audit))
    assert "peers-unknown" in [event["event"] for event in events(net.members[1])]
    net.presence((1, 3))
    net.run()
    net.reboot(2, old)
    net.presence(COMMITTEE)
    net.run()
    assert linked(desk, 2)[1] is False


@pytest.mark.parametrize("other", ["garbage", "prss"])
def test_another_record_in_its_place_is_not_taken(desk: Desk, other: str) -> None:
    net = desk.net
    disk = net.copy_disk(1)
    sealed = b"x" * 80 if other == "garbage" else disk.records["prss", "prss"].sealed
    forged = msgspec.structs.replace(disk.records["peers", "peers"], sealed=sealed, version=1)
    come_back(desk, 1, Disk({**disk.records, ("peers", "peers"): forged}, disk.audit))
    assert "peers-unreadable" in [event["event"] for event in events(net.members[1])]


def test_the_record_is_written_when_something_new_was_seen_and_only_then(desk: Desk) -> None:
    net = desk.net

    def version() -> int:
        return net.members[1].store["peers", "peers"].version

    net.advance(PERIOD_S)
    net.advance(PERIOD_S)
    before = version()
    net.advance(PERIOD_S)
    assert version() == before
    sign(desk, 1)
    net.advance(PERIOD_S)
    after = version()
    assert before < after <= before + 2  # both peers have told


def test_while_the_hsm_is_away_nothing_is_lost(desk: Desk) -> None:
    net = desk.net
    net.advance(PERIOD_S)
    before = net.members[1].store["peers", "peers"]
    net.members[1].hsm.away = True
    sign_elsewhere = desk.client.create_key("hot/away")
    net.keygen(sign_elsewhere)  # fails at 1, and leaves entries at the others
    net.advance(PERIOD_S)
    assert net.members[1].store["peers", "peers"] == before
    net.members[1].hsm.away = False
    net.advance(PERIOD_S)
    net.advance(PERIOD_S)
    assert net.members[1].core._standing.book.seen(2) is not None
    assert net.members[1].core._standing._unsaved is False


def test_a_peer_that_shows_new_states_without_end_costs_few_writes_and_none_is_lost(desk: Desk) -> None:
    net = desk.net
    net.advance(PERIOD_S)
    net.advance(PERIOD_S)
    book, before = net.members[1].core._standing.book, net.members[1].store["peers", "peers"].version
    seen = book.seen(2)
    assert seen is not None
    for number in range(1, 201):
        book.on_told(2, seen.boot, seen, ChainEnd(seen.version + number, bytes(32)))
        net.run()
    assert net.members[1].store["peers", "peers"].version == before  # the states told last were stored just now
    net.advance(SAVE_EVERY_S)
    assert net.members[1].store["peers", "peers"].version == before + 1
    come_back(desk, 1)
    found = net.members[1].core._standing.book.seen(2)
    assert found is not None
    assert found.version == seen.version + 200


def test_what_a_refusal_was_found_by_is_stored_at_once(desk: Desk) -> None:
    net = desk.net
    net.advance(PERIOD_S)
    net.advance(PERIOD_S)
    book = net.members[1].core._standing.book
    seen = book.seen(2)
    assert seen is not None
    book.on_told(2, seen.boot, seen, ChainEnd(seen.version + 1, bytes(32)))
    net.run()
    with pytest.raises(RolledBack):
        book.on_told(2, seen.boot, seen, ChainEnd(seen.version - 1, bytes(32)))
    net.run()
    come_back(desk, 1)
    found = net.members[1].core._standing.book.seen(2)
    assert found is not None
    assert found.bar == "rewound"


def test_a_peer_that_is_refused_again_and_again_does_not_fill_the_audit_chain(desk: Desk) -> None:
    standing = desk.net.members[1].core._standing
    seen = standing.book.seen(2)
    assert seen is not None
    for _ in range(100):
        standing._notice("peer-rolled-back", 2, seen)
    desk.net.run()
    told = [event for event in events(desk.net.members[1]) if event["event"] == "peer-rolled-back"]
    assert len(told) == NOTICES
    for _ in range(NOTICES_PERIODS):
        desk.net.advance(PERIOD_S)
    standing._notice("peer-rolled-back", 2, seen)
    desk.net.run()
    assert events(desk.net.members[1])[-1]["left_out"] == 100 - NOTICES


# --- copies ---


def test_a_copy_started_while_the_first_one_runs_is_noticed_and_both_are_refused(desk: Desk) -> None:
    net = desk.net
    first = net.start_copy(2, net.copy_disk(2))
    assert linked(desk, 2) == [True, True]  # so far it looks like a restart
    net.drain()
    copied = net.put_in(first)
    assert linked(desk, 2) == [False, False]
    shown = links(desk, 2)
    assert all(not up and "two enclaves have the identity of signer-2" in reason for up, reason in shown.values())
    net.put_in(copied)
    assert linked(desk, 2) == [False, False]
    assert "peer-cloned" in [event["event"] for event in events(net.members[3])]
    # It is remembered over a restart of the peers.
    for j in (1, 3):
        come_back(desk, j)
    assert linked(desk, 2) == [False, False]
    # Stop both, start one: it needs the operators' word, with the state that it shows.
    come_back(desk, 2)
    assert linked(desk, 2) == [False, False]
    word = AcceptedState("signer-2", net.members[2].core._audit.at_boot.version, boot_of(desk, 2))
    net.accepted = {1: (word,), 3: (word,)}
    net.advance(RETRY_S)
    assert linked(desk, 2) == [True, True]
    assert sorted(net.presign(COMMITTEE, 2)) == [1, 2, 3]


def test_a_copy_on_yesterdays_disk_is_refused_and_the_first_one_goes_on(desk: Desk) -> None:
    net = desk.net
    old = net.copy_disk(2)
    sign(desk, 1)
    net.advance(PERIOD_S)
    first = net.start_copy(2, old)
    assert linked(desk, 2) == [False, False]
    net.put_in(first)
    assert linked(desk, 2) == [True, True]


def test_copies_behind_two_coordinators_at_the_same_time(desk: Desk) -> None:
    """One coordinator shows the copy, another one the first enclave: the peers compare."""
    net = desk.net
    first = net.members[2]
    copied = net._boot(2, first.hsm, dict(first.store), net.roster)
    copied.audit = list(first.audit)
    spare: list[tuple[int, Any]] = []

    def route(j: int, message: Any) -> None:
        """Messages through `spare` reach the copy where they are for signer 2."""
        spare.append((j, message))

    def deliver() -> None:
        while spare or net.queue:
            net.run()
            while spare:
                j, message = spare.pop(0)
                core = copied.core if j == 2 else net.members[j].core
                core.dispatch.handle(message)

    attach = wire.Attach(
        wire.PROTOCOL_VERSION, "t", copied.store["prss", "prss"], None, copied.audit[-1].seq, copied.audit[-1].hash
    )
    copied.core.dispatch.handle(attach)
    net.via["spare"] = route
    for j in COMMITTEE:
        route(j, wire.Presence("spare", COMMITTEE))
    deliver()
    # The copy looked like a restart at first; then the first one answered a new hello.
    for j in (1, 3):
        assert net.members[j].core._links.get(COORDINATOR, 2) is None
        assert net.members[j].core._links.get("spare", 2) is None
        assert net.members[j].core._standing.book.refused == {2: "cloned"}


def test_a_memory_image_that_is_resumed_is_noticed_once_its_state_was_told(desk: Desk) -> None:
    """The restored enclave has presignatures that were used since: nobody links with it until it restarts."""
    net = desk.net
    net.run()
    chain = copy.copy(net.members[2].core._audit.__dict__)
    sign(desk, 1)
    net.advance(PERIOD_S)
    net.members[2].core._audit.__dict__.update(chain)  # what a resumed image has: the same boot, an older chain
    net.tell(2, wire.Presence(COORDINATOR, ()))
    net.presence((1, 3))
    net.run()
    net.presence(COMMITTEE)
    net.run()
    assert linked(desk, 2) == [False, False]
    assert {net.members[j].core._standing.book.refused[2] for j in (1, 3)} == {"rolled-back"}
    come_back(desk, 2)
    assert linked(desk, 2) == [True, True]


# --- the coordinator ---


def test_told_states_that_are_forged_or_replayed_do_nothing(desk: Desk) -> None:
    net = desk.net
    sign(desk, 1)
    start = len(net.frames)
    net.advance(PERIOD_S)
    told = [frame for frame in net.frames[start:] if frame[2][:1] == b"\x01"]
    assert len(told) == 6  # everybody to everybody
    sign(desk, 2)
    net.advance(PERIOD_S)
    refused = net.members[1].core.dispatch.counters.get("frames_refused|link", 0)
    for sender, receiver, data in told:
        net.tell(receiver, wire.PeerFrame(COORDINATOR, sender, data))  # late: passed over
        net.tell(receiver, wire.PeerFrame(COORDINATOR, sender, data[:-1] + bytes([data[-1] ^ 1])))
        net.tell(sender, wire.PeerFrame(COORDINATOR, receiver, data))  # reflected
    net.run()
    assert linked(desk, 2) == linked(desk, 1) == linked(desk, 3) == [True, True]
    assert all(member.core._standing.book.refused == {} for member in net.members.values())
    # Of both peers: each one's altered one, and each of ours come back.
    assert net.members[1].core.dispatch.counters["frames_refused|link"] == refused + 4


def test_a_coordinator_that_replays_an_old_boots_handshake_convicts_nobody(desk: Desk) -> None:
    net = desk.net
    handshakes = [frame for frame in net.frames if frame[2][:1] == b"\x01"]
    come_back(desk, 2)
    for sender, receiver, data in handshakes:
        net.tell(receiver, wire.PeerFrame(COORDINATOR, sender, data))
    net.run()
    net.advance(RETRY_S)
    assert all(member.core._standing.book.refused == {} for member in net.members.values())
    assert linked(desk, 2) == [True, True]


def test_only_everybodys_disk_put_back_together_goes_unnoticed(desk: Desk) -> None:
    """Said in THREATS: who could notice has forgotten it too."""
    net = desk.net
    old = {j: net.copy_disk(j) for j in COMMITTEE}
    sign(desk, 1)
    net.advance(PERIOD_S)
    for j in COMMITTEE:
        net.presence(())
        net.run()
        net.members[j] = net._boot(j, net.members[j].hsm, dict(old[j].records), net.roster)
        net.members[j].audit = list(old[j].audit)
        net.attach(j)
        net.run()
    net.presence(COMMITTEE)
    net.run()
    assert linked(desk, 2) == [True, True]
    net.drain()
    # But no disk brings a presignature back.
    request = desk.client.sign_hash(desk.key_id, b"h" * 32)
    only(net.authorise(request, desk.key_id, COMMITTEE, desk.name(2)), wire.UnknownPresignature)
