"""The coordinator with fake signers over real TLS: keys, signatures, refusals, retries, idempotency."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator, Iterable
from functools import partial

import coincurve
import msgspec
import pytest

from appliance import relay
from appliance.api.certificates import verify_key
from appliance.api.derivation import derive
from appliance.api.models import Key
from appliance.coordinator import api as api_module
from appliance.coordinator.server import Coordinator
from enclave import wire
from tests.fakes.coordinator_side import FakeNetwork, FakeSigner, until
from tests.fakes.typed_data import ETHER_MAIL, ETHER_MAIL_HASH, ether_mail

H = "0x" + bytes(range(32)).hex()


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made, made.all_connected():
        yield made


def creation(external_id: str = "key-1", **changes: object) -> dict[str, object]:
    body = {
        "scheme": "ECDSA",
        "curve": "secp256k1",
        "signers": 3,
        "tolerate": 1,
        "label": "treasury",
        "externalId": external_id,
    }
    return body | changes


def hash_body(external_id: str = "sig-1", path: tuple[int, ...] = ()) -> dict[str, object]:
    return {"kind": "Hash", "hash": H, "externalId": external_id, "derivationPath": path}


async def make_key(net: FakeNetwork) -> str:
    status, shown = await net.post("/v1/keys", creation())
    assert (status, shown["status"]) == (201, "Active"), shown
    return str(shown["id"])


def check(net: FakeNetwork, shown: dict[str, object], path: tuple[int, ...] = ()) -> None:
    value = shown["signature"]
    facts = net.dealer.acknowledgement()
    child, _ = derive(facts.public_key, facts.chain_code, path)
    rsv = bytes.fromhex(value["rsv"][2:])
    assert coincurve.PublicKey.from_signature_and_message(rsv, bytes(range(32)), hasher=None).format() == child
    assert value["publicKey"] == "0x" + child.hex()


# --- the main way ---


async def test_a_key_is_shown_with_a_certificate_that_verifies(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    status, shown = await net.get(f"/v1/keys/{key_id}")
    assert status == 200
    key = msgspec.convert(shown, Key)
    assert verify_key(key, net.dealer.roster).key_id == key_id
    assert key.scheme_statement == "3 signers, tolerate 1: all 3 online to sign, 2 shares reconstruct"
    assert (await net.get("/v1/keys"))[1]["items"] == [shown]
    assert (await net.get(f"/v1/keys/{key.request_id}"))[1] == shown


@pytest.mark.parametrize("path", [(), (0, 5)])
async def test_a_signature_verifies_under_the_child_key(net: FakeNetwork, path: tuple[int, ...]) -> None:
    key_id = await make_key(net)
    status, shown = await net.post(f"/v1/keys/{key_id}/signatures", hash_body(path=path))
    assert (status, shown["status"]) == (201, "Signed"), shown
    check(net, shown, path)
    assert await net.get(f"/v1/keys/{key_id}/signatures/{shown['id']}") == (200, shown)


async def test_typed_data_that_has_no_hash_is_not_accepted(net: FakeNetwork) -> None:
    path = f"/v1/keys/{await make_key(net)}/signatures"
    body = {"kind": "Eip712TypedData", "externalId": "typed-1", "typedData": ether_mail("message", "contents", value=1)}
    status, shown = await net.post(path, body)
    assert (status, shown["code"]) == (422, "unprocessable")
    assert "Mail.contents is not a string" in str(shown["detail"])
    status, shown = await net.post(path, {**body, "typedData": ETHER_MAIL})
    assert (status, shown["status"], shown["kind"]) == (201, "Signed", "Eip712TypedData")
    assert shown["signature"]["hash"] == "0x" + ETHER_MAIL_HASH


async def test_many_signatures_at_once_never_share_a_presignature(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    answers = await asyncio.gather(
        *(net.post(f"/v1/keys/{key_id}/signatures", hash_body(f"sig-{i}")) for i in range(20))
    )
    assert [(status, shown["status"]) for status, shown in answers] == [(201, "Signed")] * 20
    for signer in net.signers:
        names = [
            order.authorizations[0].authorization.terms.presignature for order in signer.received(wire.OnlineOrder)
        ]
        assert len(names) == len(set(names)) == 20


# --- idempotency ---


async def test_what_comes_while_pages_are_read_moves_nothing_and_is_at_the_end(
    net: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "PAGE", 2)
    key_id = await make_key(net)
    path = f"/v1/keys/{key_id}/signatures"

    async def ask(number: int) -> None:
        status, _ = await net.post(path, hash_body(f"e{number}"))
        assert status == 201

    for number in range(4):
        await ask(number)
    seen, cursor, asked = [], "0", 4
    while cursor is not None:
        _, page = await net.get(f"{path}?cursor={cursor}")
        assert len(page["items"]) <= 2
        seen += [item["externalId"] for item in page["items"]]
        cursor = page.get("nextCursor")
        if asked < 7:
            await ask(asked)
            asked += 1
    assert seen == [f"e{number}" for number in range(7)]
    # Any number is a place in the list; what is none is refused.
    assert (await net.get(f"{path}?cursor=999999999999999"))[1] == {"items": []}
    for hostile in ("-1", "1e3", "0x10", "1000000000000000", "%D9%A3", "1%00", "", "1&cursor=2"):
        assert (await net.get(f"{path}?cursor={hostile}"))[0] == 400, hostile


async def test_the_same_body_is_the_same_signature(net: FakeNetwork) -> None:
    path = f"/v1/keys/{await make_key(net)}/signatures"
    first = await net.post(path, hash_body())
    assert await net.post(path, hash_body()) == (200, first[1])
    assert len(net.signers[0].received(wire.SignOrder)) == 1


async def test_another_body_with_the_same_external_id_is_a_conflict(net: FakeNetwork) -> None:
    path = f"/v1/keys/{await make_key(net)}/signatures"
    await net.post(path, hash_body())
    status, shown = await net.post(path, hash_body(path=(1,)))
    assert (status, shown["code"]) == (409, "external-id-taken")


async def test_the_same_key_request_twice_makes_one_key(net: FakeNetwork) -> None:
    (one, first), (two, second) = await asyncio.gather(
        net.post("/v1/keys", creation()), net.post("/v1/keys", creation())
    )
    assert {one, two} == {200, 201}
    assert first == second
    assert len(net.signers[0].received(wire.KeygenOrder)) == 1


# --- refusals and failures ---


async def test_a_refusal_names_the_signer_and_costs_no_presignature(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    refuser = net.signers[1]
    refuser.answers[wire.SignOrder] = lambda order: [
        wire.RequestRefused(order.ceremony, "policy/blind", "hashes are not signed")
    ]
    available = (await net.get("/healthz"))[1]["presignatures"]
    status, shown = await net.post(f"/v1/keys/{key_id}/signatures", hash_body())
    assert (status, shown["status"]) == (201, "Rejected")
    assert shown["reason"] == {
        "code": "policy/blind",
        "message": "hashes are not signed",
        "signer": "signer-2",
    }
    assert (await net.get("/healthz"))[1]["presignatures"] == available
    order = net.signers[0].received(wire.SignOrder)[0]
    await until(lambda: wire.AbandonOrder(order.ceremony) in net.signers[0].orders)
    assert net.signers[0].received(wire.OnlineOrder) == []


async def test_a_request_from_before_a_signers_start_has_failed_and_is_not_tried_again(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    restarted = net.signers[1]
    restarted.answers[wire.SignOrder] = lambda order: [
        wire.RequestRefused(order.ceremony, "request/boot", "signed before this enclave's start")
    ]
    _, shown = await net.post(f"/v1/keys/{key_id}/signatures", hash_body())
    assert (shown["status"], shown["reason"]["code"]) == ("Failed", "request/boot")
    assert len(restarted.received(wire.SignOrder)) == 1


async def test_a_wrong_share_leads_to_another_attempt_with_another_presignature(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    cheat, left = net.signers[2], [1]

    def once_wrong(order: wire.OnlineOrder) -> Iterable[wire.Wire]:
        return [cheat.share(order, add=left.pop() if left else 0)]

    cheat.answers[wire.OnlineOrder] = once_wrong
    status, shown = await net.post(f"/v1/keys/{key_id}/signatures", hash_body())
    assert (status, shown["status"]) == (201, "Signed"), shown
    check(net, shown)
    orders = net.signers[0].received(wire.SignOrder)
    assert len(orders) == len({order.presignature for order in orders}) == 2


async def test_three_wrong_shares_end_it_as_failed(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    cheat = net.signers[2]
    cheat.answers[wire.OnlineOrder] = lambda order: [cheat.share(order, add=1)]
    status, shown = await net.post(f"/v1/keys/{key_id}/signatures", hash_body())
    assert (status, shown["status"], shown["reason"]["code"]) == (201, "Failed", "combine")
    assert "signature" not in shown
    assert len(cheat.received(wire.OnlineOrder)) == 3


async def test_a_signer_that_lies_about_the_hash_is_noticed_before_the_online_step(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    for liar in net.signers:
        liar.answers[wire.SignOrder] = lambda order, liar=liar: [
            wire.Authorized(order.ceremony, liar.authorization(order, h=bytes(32)))
        ]
    _, shown = await net.post(f"/v1/keys/{key_id}/signatures", hash_body())
    assert (shown["status"], shown["reason"]["code"]) == ("Failed", "terms")
    assert net.signers[0].received(wire.OnlineOrder) == []


async def test_an_unknown_presignature_is_replaced_by_another(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    forgetful, left = net.signers[1], [True]

    def once_unknown(order: wire.SignOrder) -> Iterable[wire.Wire]:
        if left:
            left.pop()
            forgetful.taken.add((order.presignature.sid, order.presignature.index))
            return [wire.UnknownPresignature(order.ceremony, order.presignature)]
        return forgetful.honest(order)

    forgetful.answers[wire.SignOrder] = once_unknown
    status, shown = await net.post(f"/v1/keys/{key_id}/signatures", hash_body())
    assert (status, shown["status"]) == (201, "Signed"), shown
    first, second = forgetful.received(wire.SignOrder)
    assert first.presignature != second.presignature
    assert first.ceremony == second.ceremony


async def test_a_pending_gate_is_executing_and_then_signed(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    slow = net.signers[0]
    held: list[wire.SignOrder] = []

    def pending(order: wire.SignOrder) -> Iterable[wire.Wire]:
        held.append(order)
        return [wire.GatePending(order.ceremony, 2**33)]

    slow.answers[wire.SignOrder] = pending
    status, shown = await net.post(f"/v1/keys/{key_id}/signatures", hash_body(), wait_s=0)
    assert (status, shown["status"]) == (202, "Pending")
    path = f"/v1/keys/{key_id}/signatures/{shown['id']}"
    while (shown := (await net.get(path))[1])["status"] != "Executing":
        assert shown["status"] == "Pending"
    until_shown = "a gate is deciding, and has time until 2242-03-16T12:56:32Z"
    assert shown["reason"] == {"code": "gate/pending", "message": until_shown, "signer": "signer-1"}
    # Asked again for a presignature that nobody has: none is named while the gate decides.
    await until(lambda: len(held) == 2)
    slow.answers.clear()
    await slow.report(wire.UnknownPresignature(held[1].ceremony, held[1].presignature))
    status, shown = await net.post(f"/v1/keys/{key_id}/signatures", hash_body())
    assert (status, shown["status"], shown.get("reason")) == (200, "Signed", None)


async def test_a_key_that_a_signer_has_pending_is_activated_and_signed_with(net: FakeNetwork) -> None:
    late = net.signers[2]
    full = late.honest

    def not_activated(order: wire.KeygenOrder) -> Iterable[wire.Wire]:
        acknowledged, _ = full(order)
        return [acknowledged, wire.CeremonyFailed(order.ceremony, "timeout", "2.7", "silence", (), ())]

    late.answers[wire.KeygenOrder] = not_activated
    late.answers[wire.SignOrder] = lambda order: (
        full(order)
        if late.received(wire.ActivateOrder)
        else [wire.RequestRefused(order.ceremony, "key/pending", "no certificate yet")]
    )
    key_id = await make_key(net)
    await until(lambda: late.received(wire.ActivateOrder))
    assert [order.key_id for order in late.received(wire.ActivateOrder)] == [key_id]
    assert net.signers[0].received(wire.ActivateOrder) == []
    _, shown = await net.post(f"/v1/keys/{key_id}/signatures", hash_body())
    assert shown["status"] == "Signed"


async def test_a_key_whose_certificate_does_not_verify_is_not_shown(net: FakeNetwork) -> None:
    def forged(signer: FakeSigner, order: wire.KeygenOrder) -> Iterable[wire.Wire]:
        _, (one, two, three) = signer.acknowledgements(order.requests[0])
        certificate = (one, msgspec.structs.replace(two, signature=bytes(63) + b"\1"), three)
        return [
            wire.KeysAcknowledged(order.ceremony, (certificate[signer.index - 1],)),
            wire.KeysActivated(order.ceremony, (certificate,)),
        ]

    for signer in net.signers:
        signer.answers[wire.KeygenOrder] = partial(forged, signer)
    status, shown = await net.post("/v1/keys", creation())
    assert (status, shown["status"], shown["reason"]["code"]) == (201, "Failed", "certificate")
    assert not {"id", "publicKey", "certificate"} & shown.keys()


async def test_a_key_creation_that_a_signer_refuses_is_rejected(net: FakeNetwork) -> None:
    net.signers[0].answers[wire.KeygenOrder] = lambda order: [
        wire.RequestRefused(order.ceremony, "client", "unknown client")
    ]
    for other in net.signers[1:]:
        other.answers[wire.KeygenOrder] = lambda order: []
    _, shown = await net.post("/v1/keys", creation())
    assert (shown["status"], shown["reason"]["signer"]) == ("Rejected", "signer-1")
    ceremony = net.signers[1].received(wire.KeygenOrder)[0].ceremony
    await until(lambda: wire.AbandonOrder(ceremony) in net.signers[1].orders)


async def test_a_disconnect_in_a_ceremony_ends_the_attempt_and_the_next_one_succeeds(
    tmp_path: pathlib.Path,
) -> None:
    async with FakeNetwork.start(tmp_path) as net:
        one, two, leaver = net.signers
        async with one.connected(net.gateway, net.files), two.connected(net.gateway, net.files):
            async with leaver.connected(net.gateway, net.files):
                await net.ready()
                key_id = await make_key(net)
                leaver.answers[wire.SignOrder] = lambda order: []
                request = asyncio.create_task(net.post(f"/v1/keys/{key_id}/signatures", hash_body()))
                await until(lambda: leaver.received(wire.SignOrder))
            del leaver.answers[wire.SignOrder]
            leaver.online = ()
            async with leaver.connected(net.gateway, net.files):
                status, shown = await request
                assert (status, shown["status"]) == (201, "Signed"), shown
        assert len(one.received(wire.SignOrder)) == 2


async def test_any_committee_of_five_signs_when_two_are_away(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path, n=5, t=1) as net:
        async with net.all_connected():
            _, shown = await net.post("/v1/keys", creation(signers=5))
            assert shown["status"] == "Active"
        path = f"/v1/keys/{shown['id']}/signatures"
        present: list[FakeSigner] = [net.signers[i] for i in (0, 2, 3)]
        for signer in present:
            signer.online = ()
        a, b, c = (signer.connected(net.gateway, net.files) for signer in present)
        async with a, b, c:
            await net.ready()
            _, shown = await net.post(path, hash_body())
            assert shown["status"] == "Signed", shown
            check(net, shown)
            assert present[0].received(wire.SignOrder)[-1].committee == (1, 3, 4)


async def test_without_a_key_there_is_nothing_to_sign_with(net: FakeNetwork) -> None:
    status, shown = await net.post(f"/v1/keys/key_{'0' * 32}/signatures", hash_body())
    assert (status, shown["code"]) == (404, "not-found")


# --- restart ---


async def test_after_a_restart_keys_pools_and_results_are_there_and_an_open_request_goes_on(
    tmp_path: pathlib.Path,
) -> None:
    async with FakeNetwork.start(tmp_path) as net:
        async with net.all_connected():
            path = f"/v1/keys/{await make_key(net)}/signatures"
            done = await net.post(path, hash_body("done"))
            net.signers[1].answers[wire.SignOrder] = lambda order: []
            status, open_request = await net.post(path, hash_body("open"), wait_s=0)
            assert status == 202
            await until(lambda: len(net.signers[1].received(wire.SignOrder)) == 2)
        batches = len(net.signers[0].received(wire.PresignOrder))
    async with Coordinator(net.config) as coordinator:
        net.use(coordinator)
        net.signers[1].answers.clear()
        for signer in net.signers:
            signer.online = ()
        async with net.client(), net.all_connected():
            assert await net.get(f"{path}/{done[1]['id']}") == (200, done[1])
            status, shown = await net.post(path, hash_body("open"))
            assert (status, shown["status"], shown["id"]) == (200, "Signed", open_request["id"])
            check(net, shown)
            assert len(net.signers[0].received(wire.PresignOrder)) == batches
            assert len(net.signers[0].received(wire.SetupOrder)) == 1


# --- bad requests ---


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"{", "body: "),
        (b'{"label": "\xff"}', "body: "),
        (b"[" * 5000, "body: "),
        (creation(label="../x y"), "label"),
        (creation(extra=1), "extra"),
        (creation(signers=3.0), "got `float`"),
        (b'{"label": "a", "label": "b"}', "duplicate key"),
        (creation(externalId=""), "externalId"),
    ],
)
async def test_a_malformed_body_is_a_problem_document(net: FakeNetwork, body: object, detail: str) -> None:
    status, shown = await net.post("/v1/keys", body)
    assert (status, shown["code"]) == (400, "bad-request")
    assert detail in shown["detail"]


async def test_a_body_that_is_too_large_is_refused(net: FakeNetwork) -> None:
    status, shown = await net.post("/v1/keys", b" " * (wire.MAX_BODY_BYTES + 1))
    assert (status, shown["code"]) == (413, "too-large")


async def test_a_missing_jws_is_refused(net: FakeNetwork) -> None:
    headers = {"Content-Type": "application/json"}
    async with net.http.post(net.api + "/v1/keys", data=b"{}", headers=headers) as answer:
        assert (answer.status, answer.content_type) == (401, "application/problem+json")
        assert answer.headers["WWW-Authenticate"] == "Keymoot-Signature"
        assert "Keymoot-Signature" in (await answer.json())["detail"]


@pytest.mark.parametrize("query", ["waitt=0", "wait=0&wait=1", "cursor=0", "="])
async def test_a_query_that_means_nothing_is_refused(net: FakeNetwork, query: str) -> None:
    data = msgspec.json.encode(creation())
    headers = {"Keymoot-Signature": net.sign("/v1/keys", data), "Content-Type": "application/json"}
    async with net.http.post(f"{net.api}/v1/keys?{query}", data=data, headers=headers) as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) == (400, "bad-request")
    assert (await net.get("/v1/keys"))[1]["items"] == []


async def test_a_scheme_that_is_not_the_networks_is_unprocessable(net: FakeNetwork) -> None:
    status, shown = await net.post("/v1/keys", creation(signers=4))
    assert (status, shown["code"]) == (422, "unprocessable")
    assert "3 signers" in str(shown["detail"])


async def test_an_unknown_path_is_a_problem_document(net: FakeNetwork) -> None:
    async with net.http.get(net.api + "/v2/keys") as answer:
        assert (answer.status, answer.content_type) == (404, "application/problem+json")


async def test_frames_are_delivered_with_the_sender_of_the_connection(net: FakeNetwork) -> None:
    await net.signers[0].send(relay.Forward(2, b"control"))
    await net.signers[2].send(relay.Forward(2, b"bulk"), bulk=True)
    await until(lambda: len(net.signers[1].delivered) == 2)
    assert set(net.signers[1].delivered) == {relay.Deliver(1, b"control"), relay.Deliver(3, b"bulk")}
