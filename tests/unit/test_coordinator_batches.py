"""Batches in the coordinator, with fake signers over TLS: each item by itself, presignatures once, lies noticed."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import sqlite3
from collections.abc import AsyncIterator, Iterable

import coincurve
import pytest

from appliance.api.derivation import derive
from appliance.coordinator import api
from appliance.coordinator.server import Coordinator
from enclave import wire
from tests.fakes.coordinator_side import FakeNetwork, until
from tests.unit.test_coordinator_requests import creation, hash_body, make_key

PATHS = ((), (0, 5), (0, 6))


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made, made.all_connected():
        yield made


def batch(count: int = 3, external_id: str = "batch-1", paths: object = PATHS) -> dict[str, object]:
    hashes = ["0x" + hashlib.sha256(bytes([number])).hexdigest() for number in range(count)]
    return {"kind": "HashBatch", "hashes": hashes, "externalId": external_id, "derivationPaths": paths}


def path_of(key_id: str) -> str:
    return f"/v1/keys/{key_id}/signature-batches"


def check(net: FakeNetwork, result: dict[str, object], h: str, path: tuple[int, ...]) -> None:
    facts, value = net.dealer.acknowledgement(), result["signature"]
    child, _ = derive(facts.public_key, facts.chain_code, path)
    rsv = bytes.fromhex(value["rsv"][2:])
    recovered = coincurve.PublicKey.from_signature_and_message(rsv, bytes.fromhex(h[2:]), hasher=None)
    assert (recovered.format(), value["publicKey"], value["hash"]) == (child, "0x" + child.hex(), h)


async def test_each_hash_is_signed_under_its_own_child_key(net: FakeNetwork) -> None:
    key_id, body = await make_key(net), batch()
    status, shown = await net.post(path_of(key_id), body)
    assert (status, shown["status"], shown["count"], "reason" in shown) == (201, "Signed", 3, False), shown
    for result, h, path in zip(shown["results"], body["hashes"], PATHS, strict=True):
        check(net, result, h, path)
    (order,) = net.signers[0].received(wire.BatchSignOrder)
    assert len(set(order.presignatures)) == 3
    assert await net.get(f"{path_of(key_id)}/{shown['id']}") == (200, shown)
    assert await net.post(path_of(key_id), body) == (200, shown)
    assert (await net.post(path_of(key_id), batch(2, paths=[[]])))[0] == 409
    assert len(net.signers[0].received(wire.BatchSignOrder)) == 1


async def test_a_batch_larger_than_the_pool_is_kept_at_waits_for_it_to_be_filled(net: FakeNetwork) -> None:
    status, shown = await net.post(path_of(await make_key(net)), batch(20, paths=[[]]))
    assert (status, shown["status"], len(shown["results"])) == (201, "Signed", 20), shown


async def test_batches_and_signatures_at_once_never_share_a_presignature(net: FakeNetwork) -> None:
    path = path_of(await make_key(net))
    ids = []
    for number in range(4):
        status, shown = await net.post(path, batch(5, f"batch-{number}", [[]]), wait_s=0)
        assert status == 202
        ids.append(shown["id"])
    for number, _ in enumerate(ids):
        assert (await net.post(path, batch(5, f"batch-{number}", [[]])))[1]["status"] == "Signed"
    named = [name for order in net.signers[0].received(wire.BatchSignOrder) for name in order.presignatures]
    assert len(named) == len(set(named)) == 20


async def test_a_wrong_share_costs_its_item_alone(net: FakeNetwork) -> None:
    key_id, body, cheat = await make_key(net), batch(), net.signers[2]
    cheat.answers[wire.BatchOnlineOrder] = lambda order: [cheat.batch_shares(order, wrong=(1,))]
    status, shown = await net.post(path_of(key_id), body)
    assert (status, shown["status"]) == (201, "PartlySigned"), shown
    first, second, third = shown["results"]
    assert (list(second), second["reason"]["code"]) == (["reason"], "combine")
    check(net, first, body["hashes"][0], ())
    check(net, third, body["hashes"][2], (0, 6))
    assert len(cheat.received(wire.BatchOnlineOrder)) == 1


async def test_all_shares_wrong_three_times_is_failed(net: FakeNetwork) -> None:
    cheat = net.signers[2]
    cheat.answers[wire.BatchOnlineOrder] = lambda order: [cheat.batch_shares(order, wrong=range(3))]
    _, shown = await net.post(path_of(await make_key(net)), batch())
    assert (shown["status"], shown["reason"]["code"], "results" in shown) == ("Failed", "combine", False)
    assert len(cheat.received(wire.BatchOnlineOrder)) == 3


async def test_a_refusal_names_the_signer_and_costs_no_presignature(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    net.signers[1].answers[wire.BatchSignOrder] = lambda order: [
        wire.RequestRefused(order.ceremony, "policy/kind", "no batches")
    ]
    available = (await net.get("/healthz"))[1]["presignatures"]
    _, shown = await net.post(path_of(key_id), batch())
    assert (shown["status"], shown["reason"]["code"]) == ("Rejected", "policy/kind")
    assert shown["reason"]["signer"] == "signer-2"
    assert (await net.get("/healthz"))[1]["presignatures"] == available
    (order,) = net.signers[0].received(wire.BatchSignOrder)
    await until(lambda: wire.AbandonOrder(order.ceremony) in net.signers[0].orders)


@pytest.mark.parametrize("changes", [{"items": bytes(32)}, {"count": 2}])
async def test_another_batch_is_noticed_before_the_online_step(net: FakeNetwork, changes: dict[str, object]) -> None:
    for liar in net.signers:
        liar.answers[wire.BatchSignOrder] = lambda order, liar=liar: [
            wire.BatchAuthorized(order.ceremony, liar.batch_authorization(order, **changes))
        ]
    _, shown = await net.post(path_of(await make_key(net)), batch())
    assert (shown["status"], shown["reason"]["code"]) == ("Failed", "terms")
    assert net.signers[0].received(wire.BatchOnlineOrder) == []


async def test_one_share_too_few_is_noticed(net: FakeNetwork) -> None:
    cheat = net.signers[0]

    def short(order: wire.BatchOnlineOrder) -> Iterable[wire.Wire]:
        report = cheat.batch_shares(order)
        return [wire.BatchShareReport(report.ceremony, report.index, report.r_points[1:], report.s[1:])]

    cheat.answers[wire.BatchOnlineOrder] = short
    _, shown = await net.post(path_of(await make_key(net)), batch())
    assert (shown["status"], shown["reason"]["code"]) == ("Failed", "unexpected-report")


async def test_unknown_presignatures_alone_are_replaced(net: FakeNetwork) -> None:
    forgetful, left = net.signers[1], [True]

    def once_unknown(order: wire.BatchSignOrder) -> Iterable[wire.Wire]:
        if not left:
            return forgetful.honest(order)
        left.pop()
        lacking = order.presignatures[:2]
        forgetful.taken |= {(name.sid, name.index) for name in lacking}
        return [wire.UnknownPresignatures(order.ceremony, lacking)]

    forgetful.answers[wire.BatchSignOrder] = once_unknown
    status, shown = await net.post(path_of(await make_key(net)), batch())
    assert (status, shown["status"]) == (201, "Signed"), shown
    first, second = forgetful.received(wire.BatchSignOrder)
    assert first.ceremony == second.ceremony
    assert set(first.presignatures) & set(second.presignatures) == {first.presignatures[2]}


async def test_a_pending_gate_is_executing_and_then_signed(net: FakeNetwork) -> None:
    key_id, slow = await make_key(net), net.signers[0]
    held: list[wire.BatchSignOrder] = []

    def pending(order: wire.BatchSignOrder) -> Iterable[wire.Wire]:
        held.append(order)
        return [wire.GatePending(order.ceremony, 2**33)]

    slow.answers[wire.BatchSignOrder] = pending
    status, shown = await net.post(path_of(key_id), batch(), wait_s=0)
    assert (status, shown["status"]) == (202, "Pending")
    while (shown := (await net.get(f"{path_of(key_id)}/{shown['id']}"))[1])["status"] != "Executing":
        assert shown["status"] == "Pending"
    await until(lambda: len(held) == 2)
    slow.answers.clear()
    await slow.report(wire.UnknownPresignatures(held[1].ceremony, held[1].presignatures))
    assert (await net.post(path_of(key_id), batch()))[1]["status"] == "Signed"


async def test_after_a_restart_an_unfinished_batch_goes_on_and_a_finished_one_is_there(
    tmp_path: pathlib.Path,
) -> None:
    async with FakeNetwork.start(tmp_path) as net:
        async with net.all_connected():
            key_id = await make_key(net)
            _, done = await net.post(path_of(key_id), batch())
            net.signers[0].answers[wire.BatchSignOrder] = lambda order: []
            _, hanging = await net.post(path_of(key_id), batch(external_id="batch-2"), wait_s=0)
            await until(lambda: len(net.signers[0].received(wire.BatchSignOrder)) == 2)
        config = net.config
    async with Coordinator(config) as again:
        net.use(again)
        net.signers[0].answers.clear()
        for signer in net.signers:
            signer.online = ()
        async with net.client(), net.all_connected():
            assert await net.get(f"{path_of(key_id)}/{done['id']}") == (200, done)
            status, shown = await net.post(path_of(key_id), batch(external_id="batch-2"))
            assert (status, shown["status"], shown["id"]) == (200, "Signed", hanging["id"])


async def test_batches_of_a_key_are_listed_oldest_first_a_page_at_a_time_without_their_results(
    net: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "PAGE", 2)
    key_id = await make_key(net)
    other = (await net.post("/v1/keys", creation("key-2")))[1]["id"]
    made = [(await net.post(path_of(key_id), batch(external_id=f"batch-{n}")))[1] for n in range(3)]
    await net.post(path_of(other), batch(external_id="of-another-key"))
    summaries = [{name: value for name, value in one.items() if name != "results"} for one in made]
    status, page = await net.get(path_of(key_id))
    assert (status, page["items"]) == (200, summaries[:2])
    status, rest = await net.get(f"{path_of(key_id)}?cursor={page['nextCursor']}")
    assert (status, rest["items"], rest.get("nextCursor")) == (200, summaries[2:], None)
    assert (await net.get(path_of(key_id) + "?cursor=x"))[0] == 400
    assert (await net.get(path_of("key_" + "0" * 32)))[0] == 404


async def test_what_is_damaged_is_left_out_of_a_list_and_ends_it_nowhere(
    net: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "PAGE", 2)
    key_id = await make_key(net)
    for path, make, table in (
        (path_of(key_id), batch, "signature_batches"),
        (f"/v1/keys/{key_id}/signatures", lambda external_id: hash_body(external_id), "signatures"),
    ):
        for number in range(1, 6):
            assert (await net.post(path, make(external_id=f"{table}-{number}")))[1]["status"] == "Signed"
        with contextlib.closing(sqlite3.connect(net.config.state)) as connection, connection:
            # A value of another type, and one that the store takes and nobody can show.
            connection.execute(f"UPDATE {table} SET reason_code = x'00' WHERE seq = 2")
            connection.execute(f"UPDATE {table} SET created_at_ms = 9223372036854775807 WHERE seq IN (3, 4)")
        listed, following = [], ""
        while following is not None:
            status, page = await net.get(path + following)
            assert status == 200
            listed.append([item["externalId"] for item in page["items"]])
            following = f"?cursor={page['nextCursor']}" if "nextCursor" in page else None
        assert listed == [[f"{table}-1"], [], [f"{table}-5"]]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hashes": []}, (400, "bad-request")),
        ({"derivationPaths": [[], []]}, (422, "unprocessable")),
        ({"hashes": ["0x00"]}, (400, "bad-request")),
        ({"kind": "Hash"}, (400, "bad-request")),
    ],
)
async def test_what_is_no_batch_is_a_problem(
    net: FakeNetwork, changes: dict[str, object], problem: tuple[int, str]
) -> None:
    status, shown = await net.post(path_of(await make_key(net)), batch() | changes)
    assert (status, shown["code"]) == problem
    assert (await net.get(f"{path_of('key_' + '0' * 32)}/none"))[0] == 404
