"""Two coordinators of one network, on whole enclaves in memory: honest rivals, and one that is hostile."""

from __future__ import annotations

import os

import msgspec
import pytest

from appliance.coordinator.refill import NO_ROOM
from enclave import wire
from enclave.setup_turn import LEASE_S
from policies.requests import KEYS_PATH, Hash, KeyCreation, signatures_path
from policies.signed_requests import claimed_name
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.adversarial.test_signing import FINISHED, H1, H2, finish, only, refusals, remaining, verify
from tests.fakes.enclaves import COORDINATOR, Net, authorizations_of

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


def test_one_coordinator_takes_no_more_than_its_share_of_the_pool(joined: Net) -> None:
    """However much it orders, the other can presign."""
    for member in joined.members.values():
        member.core.dispatch._around.pool.held_for = lambda name: 100_000 if name == COORDINATOR else 0  # type: ignore[method-assign]
    for coordinator, expected in ((COORDINATOR, wire.OrderRefused), (OTHER, wire.PresignDone)):
        for j in COMMITTEE:
            joined.order(j, wire.PrepareOrder(b"prepare-ceremony", "presign"), coordinator)
        joined.run()
        nonces = tuple(reports[-1].nonce for reports in joined.drain().values())
        for j in COMMITTEE:
            joined.order(j, wire.PresignOrder(b"presign-ceremony", COMMITTEE, 2, nonces), coordinator)
        joined.run()
        reports = joined.drain()
        assert {type(theirs[-1]) for theirs in reports.values()} == {expected}
        # By these words a coordinator knows to give batches up that it does not need.
        refusals = [told for theirs in reports.values() for told in theirs if isinstance(told, wire.OrderRefused)]
        assert all(told.reason.startswith(NO_ROOM) for told in refusals)


# --- one request at two coordinators (SPEC 4.10) ---


def again(desk: Desk, request: wire.ClientRequest, **changes: object) -> wire.ClientRequest:
    """The client asks for the same under the same external id, or for something else: signed anew."""
    body = msgspec.structs.replace(msgspec.json.decode(request.body, type=Hash), **changes)
    return desk.client.request(request.path, body)


def recall(net: Net, request: wire.ClientRequest, coordinator: str = OTHER) -> dict[int, wire.Answer | None]:
    """What every signer recalls of `request`."""
    for j in COMMITTEE:
        net.order(j, wire.RecallOrder(b"recall-ceremony-", request), coordinator)
    net.run()
    found = {j: reports[-1] for j, reports in net.drain().items()}
    assert {type(report) for report in found.values()} == {wire.Recalled}, found
    return {j: report.answer for j, report in found.items()}


def reboot_all(net: Net) -> None:
    for j in COMMITTEE:
        net.reboot(j)
        net.run()
    net.presence(COMMITTEE)
    net.run()
    net.drain()


def authorised(desk: Desk, request: wire.ClientRequest, l: int, **options: object) -> dict[int, list[object]]:
    return desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name(l), **options)  # type: ignore[arg-type]


def kinds(reports: dict[int, list[object]]) -> list[list[type]]:
    return [[type(report) for report in theirs] for theirs in reports.values()]


def test_a_request_that_was_answered_is_recalled_and_makes_the_same_signature(desk: Desk, joined: Net) -> None:
    """Also by another coordinator, under another JWS, after every enclave has restarted."""
    request = desk.client.sign_hash(desk.key_id, H1)
    shares = finish(desk, authorizations_of(authorised(desk, request, 1)))
    verify(desk, shares, H1)  # type: ignore[arg-type]
    assert {j: answer.report for j, answer in recall(joined, again(desk, request)).items() if answer} == shares
    assert kinds(authorised(desk, again(desk, request), 2, coordinator=OTHER)) == [[wire.Recalled]] * 3
    joined.clock.now_s += 1
    reboot_all(joined)
    later = again(desk, request)
    assert {j: answer.report for j, answer in recall(joined, later).items() if answer} == shares
    assert kinds(authorised(desk, later, 2)) == [[wire.Recalled]] * 3
    # Its own coordinator may ask with the request as it was, though it has expired.
    assert {j: answer.report for j, answer in recall(joined, request, COORDINATOR).items() if answer} == shares


def test_the_gate_is_not_asked_again_for_what_was_answered(desk: Desk) -> None:
    request = desk.client.sign_hash(desk.key_id, H1)
    finish(desk, authorizations_of(authorised(desk, request, 1)))
    calls = [len(member.gate_calls) for member in desk.net.members.values()]
    for _ in range(5):
        assert kinds(authorised(desk, again(desk, request), 2)) == [[wire.Recalled]] * 3
    assert [len(member.gate_calls) for member in desk.net.members.values()] == calls


@pytest.mark.parametrize("change", [{"hash": "0x" + "22" * 32}, {"derivation_path": (1,)}])
def test_two_requests_under_one_external_id_at_two_coordinators(
    desk: Desk, joined: Net, change: dict[str, object]
) -> None:
    """Whichever came first stands: before its answer, after it, and after a restart."""
    first = desk.client.sign_hash(desk.key_id, H1)
    other = again(desk, first, **change)
    reports = authorised(desk, first, 1)
    assert refusals(authorised(desk, other, 2, coordinator=OTHER)) == {"request/external-id"}
    verify(desk, finish(desk, authorizations_of(reports)), H1)  # type: ignore[arg-type]
    assert refusals(authorised(desk, other, 2, coordinator=OTHER)) == {"request/external-id"}
    joined.clock.now_s += 1
    reboot_all(joined)
    assert refusals(authorised(desk, again(desk, other), 2)) == {"request/external-id"}
    for j in COMMITTEE:
        joined.order(j, wire.RecallOrder(b"recall-ceremony-", again(desk, other)))
    joined.run()
    assert refusals(joined.drain()) == {"request/external-id"}


def test_another_key_under_one_external_id(desk: Desk) -> None:
    other_key = desk.net.keygen(desk.client.create_key("hot/2"))[1].certificates[0][0].acknowledgement.key_id
    first = desk.client.sign_hash(desk.key_id, H1)
    body = msgspec.json.decode(first.body, type=Hash)
    other = desk.client.request(signatures_path(other_key), body)
    authorised(desk, first, 1)
    reports = desk.net.authorise(other, other_key, COMMITTEE, desk.name(2))
    assert refusals(reports) == {"request/external-id"}


def test_two_coordinators_show_two_requests_under_one_external_id_to_different_signers(desk: Desk) -> None:
    """Each signer takes the one it saw first; neither gets all authorizations, no presignature is spent."""
    first = desk.client.sign_hash(desk.key_id, H1)
    other = again(desk, first, hash="0x" + H2.hex())
    desk.net.order(1, wire.SignOrder(b"first-ceremony--", desk.key_id, first, COMMITTEE, desk.name()))
    desk.net.run()
    desk.net.drain()
    reports = authorised(desk, other, 1, coordinator=OTHER)
    assert kinds(reports) == [[wire.RequestRefused], [wire.Authorized], [wire.Authorized]]
    assert remaining(desk) == [8, 8, 8]


def test_the_newer_of_two_coordinators_withdraws_what_the_other_was_given(desk: Desk, joined: Net) -> None:
    request = desk.client.sign_hash(desk.key_id, H1)
    older = authorizations_of(authorised(desk, request, 1))
    newer = authorizations_of(authorised(desk, again(desk, request), 2, coordinator=OTHER))
    assert kinds(joined.online(older, desk.key_id, COMMITTEE)) == [[wire.OnlineRefused]] * 3
    for j in COMMITTEE:
        joined.order(j, wire.OnlineOrder(b"newer-ceremony--", desk.key_id, newer), OTHER)
    joined.run()
    verify(desk, only(joined.drain(), wire.ShareReport), H1)  # type: ignore[arg-type]
    # Now the older one learns what came of it.
    assert kinds(authorised(desk, request, 3)) == [[wire.Recalled]] * 3


def test_what_was_recalled_as_unanswered_is_never_answered_by_the_old_attempt(desk: Desk) -> None:
    """One signer has given its share, two have not and say so: from then on they don't."""
    request = desk.client.sign_hash(desk.key_id, H1)
    old = authorizations_of(authorised(desk, request, 1))
    desk.net.order(1, wire.OnlineOrder(b"halfway-ceremony", desk.key_id, old))
    desk.net.run()
    desk.net.drain()
    retry = again(desk, request)
    answers = recall(desk.net, retry)
    assert [answers[j] is not None for j in COMMITTEE] == [True, False, False]
    for j in (2, 3):
        desk.net.order(j, wire.OnlineOrder(b"halfway-ceremony", desk.key_id, old))
    desk.net.run()
    assert kinds({j: reports for j, reports in desk.net.drain().items() if j != 1}) == [[wire.OnlineRefused]] * 2
    # Signer 1 goes on only for who knows what it has answered; the presignature it spent is gone for good.
    reports = authorised(desk, retry, 2)
    assert kinds(reports) == [[wire.Recalled], [wire.Authorized], [wire.Authorized]]
    reports = authorised(desk, retry, 3, after=b"halfway-ceremony")
    verify(desk, finish(desk, authorizations_of(reports)), H1)  # type: ignore[arg-type]
    assert remaining(desk) == [6, 7, 7]


def test_a_lying_after_buys_no_more_than_three_attempts_for_one_message(desk: Desk) -> None:
    """A coordinator that always says that the last answer came to nothing."""
    request = desk.client.sign_hash(desk.key_id, H1)
    for l in (1, 2, 3):
        reports = authorised(desk, request, l, after=FINISHED)
        verify(desk, finish(desk, authorizations_of(reports)), H1)  # type: ignore[arg-type]
    assert refusals(authorised(desk, request, 4, after=FINISHED)) == {"request/attempts"}


def test_nobody_recalls_for_a_request_that_its_client_did_not_sign(desk: Desk) -> None:
    request = desk.client.sign_hash(desk.key_id, H1)
    old = authorizations_of(authorised(desk, request, 1))
    theirs, ours = again(desk, request), again(desk, request)
    forged = msgspec.structs.replace(theirs, jws=theirs.jws.partition("..")[0] + ".." + ours.jws.partition("..")[2])
    for j in COMMITTEE:
        desk.net.order(j, wire.RecallOrder(b"forged-ceremony-", forged))
    desk.net.run()
    assert refusals(desk.net.drain()) == {"request/signature"}
    # And nothing was withdrawn.
    verify(desk, finish(desk, old), H1)  # type: ignore[arg-type]


def test_recorded_answers_of_another_request_are_not_taken(desk: Desk) -> None:
    """A signer process that hands over the wrong answer: what it is to is not this request's name."""
    first, second = desk.client.sign_hash(desk.key_id, H1), desk.client.sign_hash(desk.key_id, H2)
    finish(desk, authorizations_of(authorised(desk, first, 1)))
    for member in desk.net.members.values():
        answer = next(each for each in member.answers.values() if isinstance(each.report, wire.ShareReport))
        member.answers = {claimed_name("testnet", second.jws, second.body): answer}  # type: ignore[dict-item]
    reports = authorised(desk, second, 2)
    verify(desk, finish(desk, authorizations_of(reports)), H2)  # type: ignore[arg-type]


def test_a_key_that_was_made_is_recalled(desk: Desk) -> None:
    request = desk.client.create_key("hot/twice")
    made = desk.net.keygen(request)[1].certificates[0]
    body = msgspec.json.decode(request.body, type=KeyCreation)
    retry = desk.client.request(KEYS_PATH, body)
    nonces = desk.net.nonces(COMMITTEE, "keygen")
    for j in COMMITTEE:
        desk.net.order(j, wire.KeygenOrder(b"again-ceremony--", (retry,), nonces))
    desk.net.run()
    assert kinds(desk.net.drain()) == [[wire.Recalled]] * 3
    for answer in recall(desk.net, retry).values():
        assert answer is not None
        assert answer.report.certificates == (made,)  # type: ignore[union-attr]
    other = desk.client.request(KEYS_PATH, msgspec.structs.replace(body, label="hot/else"))
    nonces = desk.net.nonces(COMMITTEE, "keygen")
    for j in COMMITTEE:
        desk.net.order(j, wire.KeygenOrder(b"other-ceremony--", (other,), nonces))
    desk.net.run()
    assert refusals(desk.net.drain()) == {"request/external-id"}
