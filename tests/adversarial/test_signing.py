"""Attacks on a signature, on whole enclaves in memory: by a hostile coordinator, signer process or gate."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import coincurve
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from enclave import wire
from enclave.attempts import MAX_REFUSALS_AUDITED
from enclave.crypto import polynomials
from enclave.crypto.bip32 import derive
from enclave.crypto.curve import SECP256K1
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.fakes.enclaves import authorizations_of

FINISHED = b"online-ceremony-"  # what `Net.online` calls every ceremony
H1, H2 = hashlib.sha256(b"one").digest(), hashlib.sha256(b"two").digest()


def only(reports: dict[int, list[object]], kind: type) -> dict[int, object]:
    """Each member's only report, which must be of `kind`."""
    found = {}
    for j, theirs in reports.items():
        assert [type(report) for report in theirs] == [kind], (j, theirs)
        found[j] = theirs[0]
    return found


def finish(desk: Desk, authorizations: tuple[wire.SignedAuthorization, ...]) -> dict[int, object]:
    return only(desk.net.online(authorizations, desk.key_id, COMMITTEE), wire.ShareReport)


def verify(desk: Desk, shares: dict[int, wire.ShareReport], h: bytes, path: tuple[int, ...] = ()) -> None:
    assert len({share.r_point for share in shares.values()}) == 1
    r = SECP256K1.x_mod_q(shares[1].r_point)
    s = polynomials.interpolate({j: int.from_bytes(share.s, "big") for j, share in shares.items()}, SECP256K1.q)
    public, _ = derive(desk.key.public_key, desk.key.chain_code, path)
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public)
    key.verify(utils.encode_dss_signature(r, s), h, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


def test_honest_signature(desk: Desk) -> None:
    request = desk.client.sign_hash(desk.key_id, H1, (0, 5))
    reports = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name())
    only(reports, wire.Authorized)
    verify(desk, finish(desk, authorizations_of(reports)), H1, (0, 5))


def refusals(reports: dict[int, list[object]], committee: tuple[int, ...] = COMMITTEE) -> set[str]:
    """The rules with which every committee member refused; each refused exactly once."""
    return {report.rule for report in only({j: reports[j] for j in committee}, wire.RequestRefused).values()}  # type: ignore[attr-defined]


def remaining(desk: Desk) -> list[int]:
    return [len(member.core.pool) for member in desk.net.members.values()]


# --- the request ---


@pytest.mark.parametrize(("old", "new"), [(b"[0,5]", b"[0,6]"), (H1.hex().encode(), H2.hex().encode()), (b"}", b" }")])
def test_altered_body_or_derivation_path(desk: Desk, old: bytes, new: bytes) -> None:
    request = desk.client.sign_hash(desk.key_id, H1, (0, 5))
    altered = msgspec.structs.replace(request, body=request.body.replace(old, new))
    assert altered.body != request.body
    reports = desk.net.authorise(altered, desk.key_id, COMMITTEE, desk.name())
    assert refusals(reports) == {"request/signature"}
    assert remaining(desk) == [8, 8, 8]


def test_other_key_id_in_the_path(desk: Desk) -> None:
    other = desk.net.keygen(desk.client.create_key("hot/2"))[1].certificates[0][0].acknowledgement.key_id
    request = desk.client.sign_hash(desk.key_id, H1)
    redirected = msgspec.structs.replace(request, path=request.path.replace(desk.key_id, other))
    assert refusals(desk.net.authorise(redirected, other, COMMITTEE, desk.name())) == {"request/path"}
    assert refusals(desk.net.authorise(request, other, COMMITTEE, desk.name())) == {"request/path"}


@pytest.mark.parametrize(
    ("header", "rule"),
    [
        ({"network": "mainnet"}, "request/network"),
        ({"method": "GET"}, "request/path"),
        ({"kid": "stranger"}, "request/client"),
        ({"alg": "ES256"}, "request/header"),
        ({"alg": "none"}, "request/header"),
        ({"b64": True}, "request/header"),
        ({"crit": ["b64", "exp"]}, "request/header"),
        ({"jti": None}, "request/header"),
        ({"extra": 1}, "request/header"),
        ({"exp": 1_800_000_301}, "request/lifetime"),
        ({"iat": 1_799_999_000, "exp": 1_799_999_300}, "request/expired"),
        ({"iat": 1_799_999_999}, "request/boot"),
        ({"iat": 1_800_000_100}, "request/time"),
    ],
)
def test_wrong_header(desk: Desk, header: dict[str, object], rule: str) -> None:
    request = desk.client.sign_hash(desk.key_id, H1, **header)
    expected = "request/lifetime" if header.get("iat") == 1_799_999_999 and rule == "request/lifetime" else rule
    if rule == "request/boot":
        request = desk.client.sign_hash(desk.key_id, H1, exp=1_800_000_200, **header)
    assert refusals(desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name())) == {expected}


def test_replayed_request_gets_three_attempts_for_one_message(desk: Desk) -> None:
    request = desk.client.sign_hash(desk.key_id, H1)
    for l in (1, 2, 3):
        reports = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name(l), FINISHED)
        verify(desk, finish(desk, authorizations_of(reports)), H1)
    reports = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name(4), FINISHED)
    assert refusals(reports) == {"request/attempts"}
    assert remaining(desk) == [5, 5, 5]


def test_a_refusal_answers_the_order_that_it_refuses(desk: Desk) -> None:
    """Not an earlier attempt of the same request, for which nobody waits any more."""
    request = desk.client.sign_hash(desk.key_id, H1)
    desk.gate.decide = lambda member, request: (False, "never")
    orders = ((b"first-ceremony--", COMMITTEE), (b"second-ceremony-", COMMITTEE), (b"third-ceremony--", (1, 2, 4)))
    told = []
    for ceremony, committee in orders:
        desk.net.order(1, wire.SignOrder(ceremony, desk.key_id, request, committee, desk.name()))
        desk.net.run()
        (report,) = desk.net.drain()[1]
        told.append((report.ceremony, report.rule))
    assert told == [(orders[0][0], "gate"), (orders[1][0], "gate"), (orders[2][0], "committee")]


def refused_entries(desk: Desk, j: int) -> list[dict[str, Any]]:
    bodies = [json.loads(entry.body) for entry in desk.net.members[j].audit]
    return [body for body in bodies if body["event"] == "refused"]


def test_one_request_does_not_fill_the_audit_chain_and_the_gates_no_is_still_in_it(desk: Desk) -> None:
    request = desk.client.sign_hash(desk.key_id, H1)
    desk.gate.decide = lambda member, request: (False, "never")

    def refuse(times: int) -> None:
        for _ in range(times):
            desk.net.order(1, wire.SignOrder(os.urandom(16), desk.key_id, request, (1, 2, 4), desk.name()))
        desk.net.run()
        desk.net.drain()

    refuse(50)
    assert [entry["rule"] for entry in refused_entries(desk, 1)] == ["committee"] * MAX_REFUSALS_AUDITED
    assert refusals(desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name())) == {"gate"}
    refuse(50)
    entries = refused_entries(desk, 1)
    assert len(entries) == 2 * MAX_REFUSALS_AUDITED
    assert (entries[MAX_REFUSALS_AUDITED]["rule"], entries[MAX_REFUSALS_AUDITED]["left_out"]) == ("gate", 47)


def test_other_form_of_an_es256_signature_is_the_same_request(desk: Desk) -> None:
    request = desk.client.sign_hash(desk.key_id, H1)
    twin = msgspec.structs.replace(request, jws=request.jws[:-4] + "AAAA")
    assert twin.digest("testnet") == request.digest("testnet")
    assert msgspec.structs.replace(request, body=b"x").digest("testnet") != request.digest("testnet")


def test_replayed_key_creation(desk: Desk) -> None:
    request = desk.client.create_key("hot/again")
    assert sorted(desk.net.keygen(request)) == [1, 2, 3]
    nonces = desk.net.nonces((1, 2, 3), "keygen")
    for j in COMMITTEE:
        desk.net.order(j, wire.KeygenOrder(b"again-ceremony--", (request,), nonces))
    desk.net.run()
    assert refusals(desk.net.drain()) == {"request/replayed"}


def test_hash_of_zero_and_of_the_group_order(desk: Desk) -> None:
    for h in (bytes(32), SECP256K1.q.to_bytes(32, "big")):
        request = desk.client.sign_hash(desk.key_id, h)
        assert refusals(desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name())) == {"hash"}
    assert remaining(desk) == [8, 8, 8]


def test_hash_above_the_group_order_signs(desk: Desk) -> None:
    h = b"\xff" * 32
    reports = desk.net.authorise(desk.client.sign_hash(desk.key_id, h), desk.key_id, COMMITTEE, desk.name())
    verify(desk, finish(desk, authorizations_of(reports)), h)


# --- two messages, one presignature ---


def test_two_requests_shown_to_two_signers(desk: Desk) -> None:
    one, two = desk.client.sign_hash(desk.key_id, H1), desk.client.sign_hash(desk.key_id, H2)
    reports = desk.net.authorise({1: one, 2: two, 3: one}, desk.key_id, COMMITTEE, desk.name())
    only(reports, wire.Authorized)
    refused = only(desk.net.online(authorizations_of(reports), desk.key_id, COMMITTEE), wire.OnlineRefused)
    assert [report.spent for report in refused.values()] == [False] * 3
    assert remaining(desk) == [8, 8, 8]


def test_one_presignature_for_two_messages_in_sequence(desk: Desk) -> None:
    first = desk.net.authorise(desk.client.sign_hash(desk.key_id, H1), desk.key_id, COMMITTEE, desk.name())
    finish(desk, authorizations_of(first))
    second = desk.net.authorise(desk.client.sign_hash(desk.key_id, H2), desk.key_id, COMMITTEE, desk.name())
    only(second, wire.UnknownPresignature)
    assert remaining(desk) == [7, 7, 7]


def test_one_presignature_for_two_messages_in_parallel(desk: Desk) -> None:
    """Both are authorised under one name, then both online orders come: the second finds nothing."""
    batches = [
        authorizations_of(
            desk.net.authorise(desk.client.sign_hash(desk.key_id, h), desk.key_id, COMMITTEE, desk.name())
        )
        for h in (H1, H2)
    ]
    for j in COMMITTEE:
        for authorizations in batches:
            desk.net.order(j, wire.OnlineOrder(b"parallel-online-", desk.key_id, authorizations))
    desk.net.run()
    for reports in desk.net.drain().values():
        assert [type(report) for report in reports] == [wire.ShareReport, wire.OnlineRefused]
    assert remaining(desk) == [7, 7, 7]


def test_members_led_to_two_messages_under_one_presignature_complete_neither(desk: Desk) -> None:
    """Everybody authorises both; member 1 is asked for the one, 2 and 3 for the other (SPEC 4.5)."""
    one, two = (
        authorizations_of(
            desk.net.authorise(desk.client.sign_hash(desk.key_id, h), desk.key_id, COMMITTEE, desk.name())
        )
        for h in (H1, H2)
    )
    for j, authorizations in ((1, one), (2, two), (3, two)):
        desk.net.order(j, wire.OnlineOrder(b"split-ceremony--", desk.key_id, authorizations))
    desk.net.run()
    shares = only(desk.net.drain(), wire.ShareReport)
    assert remaining(desk) == [7, 7, 7]
    # Nobody has another share to give for either.
    for authorizations in (one, two):
        only(desk.net.online(authorizations, desk.key_id, COMMITTEE), wire.OnlineRefused)
    # What there is fits neither message, under neither point.
    public = coincurve.PublicKey(desk.key.public_key)
    s = polynomials.interpolate({j: int.from_bytes(x.s, "big") for j, x in shares.items()}, SECP256K1.q)  # type: ignore[attr-defined]
    for share in shares.values():
        r = SECP256K1.x_mod_q(share.r_point)  # type: ignore[attr-defined]
        for h in (H1, H2):
            der = utils.encode_dss_signature(r, min(s, SECP256K1.q - s))
            assert not coincurve.verify_signature(der, h, public.format(), hasher=None)


def test_different_presignatures_shown_to_different_signers(desk: Desk) -> None:
    request = desk.client.sign_hash(desk.key_id, H1)
    names = {1: desk.name(1), 2: desk.name(2), 3: desk.name(1)}
    reports = desk.net.authorise(request, desk.key_id, COMMITTEE, names)
    only(desk.net.online(authorizations_of(reports), desk.key_id, COMMITTEE), wire.OnlineRefused)
    assert remaining(desk) == [8, 8, 8]


def test_an_authorization_serves_once(desk: Desk) -> None:
    reports = desk.net.authorise(desk.client.sign_hash(desk.key_id, H1), desk.key_id, COMMITTEE, desk.name())
    authorizations = authorizations_of(reports)
    finish(desk, authorizations)
    refused = only(desk.net.online(authorizations, desk.key_id, COMMITTEE), wire.OnlineRefused)
    assert all("no outstanding authorization" in report.reason for report in refused.values())


def test_an_authorization_expires(desk: Desk) -> None:
    reports = desk.net.authorise(desk.client.sign_hash(desk.key_id, H1), desk.key_id, COMMITTEE, desk.name())
    desk.net.advance(30)
    only(desk.net.online(authorizations_of(reports), desk.key_id, COMMITTEE), wire.OnlineRefused)
    assert remaining(desk) == [8, 8, 8]


def test_every_field_of_a_peers_authorization_counts(desk: Desk) -> None:
    reports = desk.net.authorise(desk.client.sign_hash(desk.key_id, H1), desk.key_id, COMMITTEE, desk.name())
    authorizations = authorizations_of(reports)
    theirs = authorizations[1].authorization
    changed = {
        "path": (1,),
        "h": H2,
        "committee": (1, 2),
        "presignature": desk.name(2),
        "prss_epoch": 2,
        "key_epoch": 2,
        "roster_digest": H2,
        "request_digest": H2,
        "public_key": b"\x02" + H2,
        "key_id": "key_" + "0" * 32,
    }
    fixed = {"scheme", "curve"}  # one value each: the codec refuses others
    assert set(changed) | fixed == {field.name for field in msgspec.structs.fields(wire.AuthorizationTerms)}
    variants = [
        msgspec.structs.replace(theirs, terms=msgspec.structs.replace(theirs.terms, **{name: value}))
        for name, value in changed.items()
        if name != "committee"
    ]
    variants += [
        msgspec.structs.replace(theirs, **{name: value})
        for name, value in {"boot_nonce": H2, "rho": H2, "expires_at_s": 1_900_000_000, "index": 3}.items()
    ]
    for variant in variants:
        forged = wire.SignedAuthorization(variant, authorizations[1].signature)
        order = (authorizations[0], forged, authorizations[2])
        desk.net.order(1, wire.OnlineOrder(b"forged-ceremony-", desk.key_id, order))
        desk.net.run()
        (report,) = desk.net.drain()[1]
        assert isinstance(report, wire.OnlineRefused)
        assert not report.spent
    assert remaining(desk) == [8, 8, 8]


def test_a_missing_or_doubled_authorization(desk: Desk) -> None:
    reports = desk.net.authorise(desk.client.sign_hash(desk.key_id, H1), desk.key_id, COMMITTEE, desk.name())
    one, two, three = authorizations_of(reports)
    for order in ((one, one, two), (one, three, two), (one, two, three, three)):
        only(desk.net.online(order, desk.key_id, COMMITTEE), wire.OnlineRefused)
    assert remaining(desk) == [8, 8, 8]


# --- restarts ---


def test_a_reboot_burns_the_pool_everywhere_and_service_returns(desk: Desk) -> None:
    reports = desk.net.authorise(desk.client.sign_hash(desk.key_id, H1), desk.key_id, COMMITTEE, desk.name())
    desk.net.reboot(2)
    desk.net.presence((1, 2, 3))
    desk.net.run()
    assert remaining(desk) == [0, 0, 0]
    desk.net.drain()
    online = desk.net.online(authorizations_of(reports), desk.key_id, COMMITTEE)
    only(online, wire.OnlineRefused)
    assert sorted(desk.net.presign(COMMITTEE, 2)) == [1, 2, 3]


def test_a_request_signed_before_a_reboot_is_refused_after_it(desk: Desk) -> None:
    request = desk.client.sign_hash(desk.key_id, H1)
    desk.net.clock.now_s += 5
    desk.net.reboot(1)
    desk.net.presence((1, 2, 3))
    desk.net.run()
    desk.net.drain()
    reports = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name())
    assert [report.rule for report in reports[1]] == ["request/boot"]


def reboot_all(desk: Desk) -> None:
    for j in COMMITTEE:
        desk.net.reboot(j)
        desk.net.presence(COMMITTEE)
        desk.net.run()
    desk.net.drain()


def test_one_that_is_dated_ahead_is_decided_anew_after_a_restart_and_refused_after_its_date(desk: Desk) -> None:
    """As THREATS says: its date does not tell that it was decided before. The gate of now decides, once a boot."""
    now_s, asked = int(desk.net.clock()), list[int]()
    request = desk.client.sign_hash(desk.key_id, H1, iat=now_s + 20, exp=now_s + 300)

    def no(member: int, _: object) -> tuple[bool, str]:
        asked.append(member)
        return False, "not today"

    desk.gate.decide = no
    for boots in (1, 2):
        for _ in range(2):
            reports = desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name())
            assert {report.reason for report in only(reports, wire.RequestRefused).values()} == {"not today"}  # type: ignore[attr-defined]
            assert sorted(asked) == sorted(boots * COMMITTEE)
        desk.net.advance(5)
        reboot_all(desk)
    desk.net.advance(20)
    reboot_all(desk)
    assert refusals(desk.net.authorise(request, desk.key_id, COMMITTEE, desk.name())) == {"request/boot"}
    assert len(asked) == 2 * len(COMMITTEE)
