"""Batches of hashes (SPEC 4.7 to 4.9) on whole enclaves: one decision, every presignature once, all or none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

import msgspec
import pytest

from enclave import request_book, wire
from enclave.asked import derive_items, understand
from enclave.attempts import MAX_ATTEMPTS, Attempt
from enclave.crypto.curve import SECP256K1
from enclave.errors import Refused
from enclave.request_book import MAX_ITEMS, MAX_ITEMS_OF_CLIENT, RequestBook
from policies.model import Kind
from policies.requests import Hash, HashBatch, signature_batches_path, signatures_path
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.adversarial.test_payload_kinds import permit_only
from tests.adversarial.test_signing import FINISHED, finish, only, refusals, remaining, verify
from tests.fakes.clients import TestClient, open_policy
from tests.fakes.enclaves import authorizations_of

HASHES = tuple(hashlib.sha256(bytes([i])).digest() for i in range(4))
PATHS = ((), (0, 5), (0, 6), (0, 5))
Names = tuple[wire.PresignatureName, ...]


def batch_request(
    desk: Desk, hashes: tuple[bytes, ...] = HASHES, paths: tuple[tuple[int, ...], ...] = PATHS
) -> wire.ClientRequest:
    body = HashBatch(tuple("0x" + h.hex() for h in hashes), os.urandom(8).hex(), paths)
    return desk.client.request(signature_batches_path(desk.key_id), body)


def names(desk: Desk, *numbers: int) -> Names:
    return tuple(desk.name(l) for l in numbers)


def authorise(
    desk: Desk, request: wire.ClientRequest, presignatures: Names | dict[int, Names], after: bytes | None = None
) -> dict[int, list[Any]]:
    ceremony = os.urandom(16)
    for j in COMMITTEE:
        named = presignatures[j] if isinstance(presignatures, dict) else presignatures
        desk.net.order(j, wire.BatchSignOrder(ceremony, desk.key_id, request, COMMITTEE, named, after))
    desk.net.run()
    return desk.net.drain()


def authorizations(reports: dict[int, list[Any]]) -> tuple[wire.SignedBatchAuthorization, ...]:
    return tuple(report.authorization for report in only(reports, wire.BatchAuthorized).values())  # type: ignore[attr-defined]


def online(desk: Desk, signed: tuple[wire.SignedBatchAuthorization, ...]) -> dict[int, list[Any]]:
    for j in COMMITTEE:
        desk.net.order(j, wire.BatchOnlineOrder(b"online-ceremony-", desk.key_id, signed))
    desk.net.run()
    return desk.net.drain()


def refused_online(desk: Desk, signed: tuple[wire.SignedBatchAuthorization, ...]) -> list[bool]:
    """Everybody refused; who lost its presignatures by it."""
    return [report.spent for report in only(online(desk, signed), wire.OnlineRefused).values()]  # type: ignore[attr-defined]


def verify_batch(desk: Desk, reports: dict[int, list[Any]], hashes: tuple[bytes, ...], paths: Any) -> set[bytes]:
    """Every signature of the batch verifies; their nonce points."""
    shares = only(reports, wire.BatchShareReport)
    points = set()
    for number, (h, path) in enumerate(zip(hashes, paths, strict=True)):
        single = {
            j: wire.ShareReport(b"online-ceremony-", j, share.r_points[number], share.s[number])  # type: ignore[attr-defined]
            for j, share in shares.items()
        }
        verify(desk, single, h, path)
        points.add(single[1].r_point)
    return points


def test_an_honest_batch(desk: Desk) -> None:
    permitted = desk.net.members[1].gate_calls
    signed = authorizations(authorise(desk, batch_request(desk), names(desk, 1, 2, 3, 4)))
    assert len(permitted) == 1
    assert remaining(desk) == [8, 8, 8]
    points = verify_batch(desk, online(desk, signed), HASHES, PATHS)
    assert len(points) == 4
    assert remaining(desk) == [4, 4, 4]


def test_the_same_hash_twice_gives_two_nonces(desk: Desk) -> None:
    request = batch_request(desk, (HASHES[0], HASHES[0]), ((0, 1),))
    signed = authorizations(authorise(desk, request, names(desk, 1, 2)))
    assert len(verify_batch(desk, online(desk, signed), (HASHES[0], HASHES[0]), ((0, 1), (0, 1)))) == 2


def test_the_gate_is_shown_every_hash_and_its_no_stops_all(desk: Desk) -> None:
    desk.gate.decide = lambda member, request: (
        all(item["tx_hash"] != HASHES[2].hex() for item in request["signerInfo"]["items"]),
        "not that one",
    )
    assert refusals(authorise(desk, batch_request(desk), names(desk, 1, 2, 3, 4))) == {"gate"}
    assert remaining(desk) == [8, 8, 8]
    (call,) = desk.net.members[1].gate_calls
    info = json.loads(call.body)["signerInfo"]
    assert (info["kind"], info["blind"], "tx_hash" in info) == ("SigningBatch", True, False)
    assert [item["tx_hash"] for item in info["items"]] == [h.hex() for h in HASHES]
    assert [tuple(item["derivation_path"]) for item in info["items"]] == list(PATHS)
    assert len({item["child_public_key"] for item in info["items"]}) == 3


def test_policies(desk: Desk) -> None:
    """Its own kind, always blind; one path that is not permitted refuses all of them."""
    permit_only(desk, *(kind for kind in Kind if kind is not Kind.HASH_BATCH))
    assert refusals(authorise(desk, batch_request(desk), names(desk, 1, 2, 3, 4))) == {"policy/kind"}
    permit_only(desk, *Kind)
    assert refusals(authorise(desk, batch_request(desk), names(desk, 1, 2, 3, 4))) == {"policy/blind"}
    for member in desk.net.members.values():
        (rule,) = member.core._config.policy.rules
        msgspec.structs.force_setattr(rule, "blind", True)
        msgspec.structs.force_setattr(rule, "derivation_paths", ("m", "m/0/5"))
    assert refusals(authorise(desk, batch_request(desk), names(desk, 1, 2, 3, 4))) == {"policy/derivation-path"}
    assert desk.net.members[1].gate_calls == []
    permitted = batch_request(desk, paths=((), (0, 5), (), (0, 5)))
    only(authorise(desk, permitted, names(desk, 1, 2, 3, 4)), wire.BatchAuthorized)


def test_no_child_key_is_derived_for_what_the_policy_does_not_permit(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be a thousand, and to order it again costs a coordinator nothing."""
    derived = []

    async def counted(*arguments: Any) -> Any:
        derived.append(arguments)
        return await derive_items(*arguments)

    monkeypatch.setattr("enclave.deciding.derive_items", counted)
    permit_only(desk, *(kind for kind in Kind if kind is not Kind.HASH_BATCH))
    assert refusals(authorise(desk, batch_request(desk), names(desk, 1, 2, 3, 4))) == {"policy/kind"}
    assert derived == []
    for j in COMMITTEE:
        desk.net.policies[j] = open_policy(desk.client)
        desk.net.members[j].core.reload.run()
    only(authorise(desk, batch_request(desk), names(desk, 1, 2, 3, 4)), wire.BatchAuthorized)
    assert len(derived) == len(COMMITTEE)


def test_a_presignature_twice_or_too_few_or_too_many(desk: Desk) -> None:
    for numbers in ((1, 2, 3, 1), (1, 2, 3), (1, 2, 3, 4, 5)):
        assert refusals(authorise(desk, batch_request(desk), names(desk, *numbers))) == {"presignature"}
    # An approved batch is not asked about again, but its next attempt is checked all the same.
    request = batch_request(desk)
    authorise(desk, request, names(desk, 1, 2, 3, 4))
    assert refusals(authorise(desk, request, names(desk, 1, 2, 3))) == {"presignature"}
    assert remaining(desk) == [8, 8, 8]


def test_unknown_presignatures_are_named_and_the_approval_stays(desk: Desk) -> None:
    finish_one(desk, 2)
    request = batch_request(desk)
    calls = len(desk.net.members[1].gate_calls)
    nowhere = wire.PresignatureName(bytes(32), 1)
    unknown = only(authorise(desk, request, (*names(desk, 1, 2, 3), nowhere)), wire.UnknownPresignatures)
    expected = (desk.name(2), nowhere)
    assert [report.presignatures for report in unknown.values()] == [expected] * 3  # type: ignore[attr-defined]
    signed = authorizations(authorise(desk, request, names(desk, 1, 3, 4, 5)))
    assert len(desk.net.members[1].gate_calls) == calls + 1
    verify_batch(desk, online(desk, signed), HASHES, PATHS)


def finish_one(desk: Desk, l: int) -> None:
    """Spend one presignature on a single signature."""
    reports = desk.net.authorise(desk.client.sign_hash(desk.key_id, HASHES[0]), desk.key_id, COMMITTEE, desk.name(l))
    finish(desk, authorizations_of(reports))


def test_one_presignature_gone_since_refuses_all_and_takes_none(desk: Desk) -> None:
    signed = authorizations(authorise(desk, batch_request(desk), names(desk, 1, 2, 3, 4)))
    finish_one(desk, 3)
    assert refused_online(desk, signed) == [False] * 3
    assert remaining(desk) == [7, 7, 7]


def test_two_batches_that_share_one_presignature(desk: Desk) -> None:
    first, second = (
        authorizations(authorise(desk, batch_request(desk), names(desk, *numbers)))
        for numbers in ((1, 2, 3, 4), (4, 5, 6, 7))
    )
    for j in COMMITTEE:
        for signed in (first, second):
            desk.net.order(j, wire.BatchOnlineOrder(b"parallel-online-", desk.key_id, signed))
    desk.net.run()
    for reports in desk.net.drain().values():
        assert [type(report) for report in reports] == [wire.BatchShareReport, wire.OnlineRefused]
    assert remaining(desk) == [4, 4, 4]


def test_different_lists_shown_to_different_signers(desk: Desk) -> None:
    request = batch_request(desk)
    straight, swapped = names(desk, 1, 2, 3, 4), names(desk, 2, 1, 3, 4)
    reports = authorise(desk, request, {1: straight, 2: swapped, 3: straight})
    assert refused_online(desk, authorizations(reports)) == [False] * 3
    other = batch_request(desk, HASHES[::-1])
    for j in COMMITTEE:
        desk.net.order(
            j, wire.BatchSignOrder(b"mixed-ceremony--", desk.key_id, other if j == 2 else request, COMMITTEE, straight)
        )
    desk.net.run()
    mixed = desk.net.drain()
    assert refused_online(desk, authorizations(mixed)) == [False] * 3
    assert remaining(desk) == [8, 8, 8]


def test_a_batch_serves_once_and_not_after_its_time(desk: Desk) -> None:
    signed = authorizations(authorise(desk, batch_request(desk), names(desk, 1, 2, 3, 4)))
    only(online(desk, signed), wire.BatchShareReport)
    assert refused_online(desk, signed) == [False] * 3
    late = authorizations(authorise(desk, batch_request(desk), names(desk, 5, 6, 7, 8)))
    desk.net.advance(30)
    assert refused_online(desk, late) == [False] * 3
    assert remaining(desk) == [4, 4, 4]


def test_a_batch_gets_three_attempts(desk: Desk) -> None:
    request = batch_request(desk, HASHES[:2], ((),))
    for numbers in ((1, 2), (3, 4), (5, 6)):
        signed = authorizations(authorise(desk, request, names(desk, *numbers), FINISHED))
        verify_batch(desk, online(desk, signed), HASHES[:2], ((), ()))
    assert refusals(authorise(desk, request, names(desk, 7, 8), FINISHED)) == {"request/attempts"}


def test_an_answered_batch_is_not_understood_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has up to 1,000 paths, and to repeat an order costs a coordinator nothing."""
    understood = []

    def counted(*arguments: Any) -> Any:
        understood.append(arguments)
        return understand(*arguments)

    monkeypatch.setattr("enclave.deciding.understand", counted)
    request = batch_request(desk)
    done = only(online(desk, authorizations(authorise(desk, request, names(desk, 1, 2, 3, 4)))), wire.BatchShareReport)
    before = len(understood)
    desk.net.clock.now_s += 121  # the gate's approval has ended, the client's request has not
    for _ in range(5):
        assert len(only(authorise(desk, request, names(desk, 5, 6, 7, 8)), wire.Recalled)) == len(COMMITTEE)
    assert len(understood) == before
    after = done[1].ceremony  # type: ignore[attr-defined]
    assert len(only(authorise(desk, request, names(desk, 5, 6, 7, 8), after), wire.BatchAuthorized)) == len(COMMITTEE)


def test_a_batch_that_is_not_understood_is_not_tried_for_ever(desk: Desk) -> None:
    request = batch_request(desk, (*HASHES[:3], bytes(32)))
    rules = [refusals(authorise(desk, request, names(desk, 1, 2, 3, 4))) for _ in range(MAX_ATTEMPTS + 1)]
    assert rules[-1] == {"request/attempts"}
    assert {"request/attempts"} not in rules[:-1]


def test_every_field_of_a_peers_batch_authorization_counts(desk: Desk) -> None:
    signed = authorizations(authorise(desk, batch_request(desk), names(desk, 1, 2, 3, 4)))
    theirs, other = signed[1].authorization, HASHES[1]
    changed = {
        "count": 3, "items": other, "prss_epoch": 2, "key_epoch": 2, "roster_digest": other, "request_digest": other,
        "public_key": b"\x02" + other, "key_id": "key_" + "0" * 32, "committee": (1, 2, 4),
    }  # fmt: skip
    # `scheme` and `curve` have one value each: the codec refuses others.
    assert set(changed) | {"scheme", "curve"} == set(wire.BatchTerms.__struct_fields__)
    variants = [
        msgspec.structs.replace(theirs, terms=msgspec.structs.replace(theirs.terms, **{name: value}))
        for name, value in changed.items()
    ]
    variants += [
        msgspec.structs.replace(theirs, **{name: value})
        for name, value in {"boot_nonce": other, "rho": other, "expires_at_s": 1_900_000_000, "index": 3}.items()
    ]
    for variant in variants:
        forged = (signed[0], wire.SignedBatchAuthorization(variant, signed[1].signature), signed[2])
        desk.net.order(1, wire.BatchOnlineOrder(b"forged-ceremony-", desk.key_id, forged))
        desk.net.run()
        (report,) = desk.net.drain()[1]
        assert (type(report), report.spent) == (wire.OnlineRefused, False)
    assert remaining(desk) == [8, 8, 8]


def test_batch_and_single_requests_never_stand_for_each_other(desk: Desk) -> None:
    batch, single = batch_request(desk, HASHES[:1], ((),)), desk.client.sign_hash(desk.key_id, HASHES[0])
    assert refusals(desk.net.authorise(batch, desk.key_id, COMMITTEE, desk.name())) == {"request/path"}
    assert refusals(authorise(desk, single, names(desk, 1))) == {"request/path"}
    # One body under the other's path, signed by the client.
    hash_body = Hash("0x" + HASHES[0].hex(), "x-1")
    crossed = desk.client.request(signature_batches_path(desk.key_id), hash_body)
    assert refusals(authorise(desk, crossed, names(desk, 1))) == {"request/body"}
    crossed = desk.client.request(signatures_path(desk.key_id), json.loads(batch.body))
    assert refusals(desk.net.authorise(crossed, desk.key_id, COMMITTEE, desk.name())) == {"request/body"}
    assert remaining(desk) == [8, 8, 8]


def test_a_single_authorization_in_an_order_for_a_batch(desk: Desk) -> None:
    reports = desk.net.authorise(desk.client.sign_hash(desk.key_id, HASHES[0]), desk.key_id, COMMITTEE, desk.name())
    singles = authorizations_of(reports)
    batch = authorizations(authorise(desk, batch_request(desk, HASHES[:1], ((),)), names(desk, 2)))
    for terms, request_digest in (
        (batch[0].authorization.terms, singles[0].authorization.terms.request_digest),
        (singles[0].authorization.terms, batch[0].authorization.terms.request_digest),
    ):
        crossed = msgspec.structs.replace(terms, request_digest=request_digest)
        if isinstance(crossed, wire.BatchTerms):
            signed: Any = tuple(
                wire.SignedBatchAuthorization(msgspec.structs.replace(b.authorization, terms=crossed), b.signature)
                for b in batch
            )
            order: Any = wire.BatchOnlineOrder(b"crossed-ceremony", desk.key_id, signed)
        else:
            signed = tuple(
                wire.SignedAuthorization(msgspec.structs.replace(s.authorization, terms=crossed), s.signature)
                for s in singles
            )
            order = wire.OnlineOrder(b"crossed-ceremony", desk.key_id, signed)
        for j in COMMITTEE:
            desk.net.order(j, order)
        desk.net.run()
        for report in only(desk.net.drain(), wire.OnlineRefused).values():
            assert "never stand for each other" in report.reason  # type: ignore[attr-defined]
    assert remaining(desk) == [8, 8, 8]


def test_zero_among_the_hashes(desk: Desk) -> None:
    for zero in (bytes(32), SECP256K1.q.to_bytes(32, "big")):
        request = batch_request(desk, (HASHES[0], zero), ((),))
        assert refusals(authorise(desk, request, names(desk, 1, 2))) == {"hash"}


@pytest.mark.parametrize(
    "changes",
    [
        {"hashes": []},
        {"hashes": ["0x" + "ab" * 32] * 1001},
        {"hashes": ["0x" + "ab" * 31]},
        {"derivationPaths": []},
        {"derivationPaths": [[0], [1]]},
        {"derivationPaths": [[2**31]]},
        {"kind": "Hash"},
        {"derivationPath": []},
    ],
)
def test_bodies(desk: Desk, changes: dict[str, Any]) -> None:
    good = {"kind": "HashBatch", "hashes": ["0x" + "ab" * 32] * 3, "externalId": "x", "derivationPaths": [[]]}
    body = {**good, **changes}
    request = desk.client.request(signature_batches_path(desk.key_id), msgspec.json.encode(body))
    assert refusals(authorise(desk, request, names(desk, 1, 2, 3))) == {"request/body"}


def test_the_largest_batch(desk: Desk) -> None:
    """A thousand hashes under a thousand paths: one gate call, one order and one report, each within its bounds."""
    (done, *_) = desk.net.presign(COMMITTEE, 1000).values()
    desk.net.drain()
    hashes = tuple(hashlib.sha256(i.to_bytes(2, "big")).digest() for i in range(1000))
    paths = tuple((i % 7, 2**31 - 1 - i) for i in range(1000))
    presignatures = tuple(wire.PresignatureName(done.sid, l) for l in range(1, 1001))
    signed = authorizations(authorise(desk, batch_request(desk, hashes, paths), presignatures))
    reports = online(desk, signed)
    assert remaining(desk) == [8, 8, 8]
    shares = only(reports, wire.BatchShareReport)
    assert [len(share.s) for share in shares.values()] == [1000] * 3  # type: ignore[attr-defined]
    cut: dict[int, list[Any]] = {
        j: [wire.BatchShareReport(b"online-ceremony-", j, share.r_points[::97], share.s[::97])]  # type: ignore[attr-defined]
        for j, share in shares.items()
    }
    verify_batch(desk, cut, hashes[::97], paths[::97])


def test_what_is_remembered_of_batches_is_bounded() -> None:
    now = [0.0]
    book = RequestBook(lambda: now[0])
    attempt = Attempt("main", b"c" * 16, COMMITTEE, tuple(wire.PresignatureName(bytes(32), l) for l in range(1, 1001)))
    for number in range(MAX_ITEMS // 1000):
        state = book.open(number.to_bytes(32, "big"), 100.0, 100.0, f"client-{number % 2}")
        for ceremony in (b"1" * 16, b"2" * 16):
            book.begin(state, Attempt("main", ceremony, COMMITTEE, attempt.presignatures))
        # A smaller attempt makes no room: what was approved for the larger one is still remembered.
        book.begin(state, Attempt("main", b"3" * 16, COMMITTEE, attempt.presignatures[:1]))
    with pytest.raises(Refused, match="200000 hashes are remembered"):
        book.begin(book.open(b"\xff" * 32, 100.0, 100.0), attempt)
    now[0] = 200.0
    book.begin(book.open(b"\xfe" * 32, 300.0, 300.0), attempt)


def test_one_client_fills_half_of_what_is_remembered_of_batches() -> None:
    now = [0.0]
    book = RequestBook(lambda: now[0])
    named = tuple(wire.PresignatureName(bytes(32), l) for l in range(1, 1001))

    def order(number: int, client_id: str) -> None:
        digest = number.to_bytes(32, "big")
        book.begin(book.open(digest, 100.0, 100.0, client_id), Attempt("main", digest[:16], COMMITTEE, named))

    for number in range(MAX_ITEMS_OF_CLIENT // 1000):
        order(number, "greedy")
    with pytest.raises(Refused, match="100000 hashes of greedy are remembered"):
        order(1000, "greedy")
    order(1001, "modest")
    now[0] = 200.0
    order(1002, "greedy")


def test_what_was_refused_keeps_nobody_else_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the policy, nor because its coordinator named more presignatures than the batch has hashes."""
    monkeypatch.setattr(request_book, "MAX_ITEMS", 4)
    stranger = TestClient(desk.net.clock, "stranger")
    policy = open_policy(desk.client)
    for j in COMMITTEE:
        desk.net.policies[j] = msgspec.structs.replace(policy, clients=(*policy.clients, stranger.entry))
        desk.net.members[j].core.reload.run()
    hostile = dataclasses.replace(desk, client=stranger)
    for _ in range(3):
        refused = authorise(desk, batch_request(hostile, HASHES[:3], ((),)), names(desk, 1, 2, 3))
        assert {rule.partition("/")[0] for rule in refusals(refused)} == {"policy"}
        small = batch_request(desk, HASHES[:1], ((),))
        assert refusals(authorise(desk, small, names(desk, 1, 2, 3))) == {"presignature"}
    only(authorise(desk, batch_request(desk, HASHES[:3], ((),)), names(desk, 1, 2, 3)), wire.BatchAuthorized)


def test_a_batch_that_is_approved_weighs_what_it_has(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many presignatures a later order names for it; and it can still be authorised."""
    monkeypatch.setattr(request_book, "MAX_ITEMS", 4)
    first = batch_request(desk, HASHES[:1], ((),))
    only(authorise(desk, first, names(desk, 1)), wire.BatchAuthorized)
    assert refusals(authorise(desk, first, names(desk, 1, 2, 3, 4))) == {"presignature"}
    only(authorise(desk, batch_request(desk, HASHES[:3], ((),)), names(desk, 2, 3, 4)), wire.BatchAuthorized)
    only(authorise(desk, first, names(desk, 1)), wire.BatchAuthorized)
    assert refusals(authorise(desk, batch_request(desk, HASHES[:1], ((),)), names(desk, 1))) == {"busy"}
