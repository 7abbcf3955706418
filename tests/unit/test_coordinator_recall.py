"""The lifecycle of an accepted request, each transition: retried, resumed after a restart, answered before.

Fake signers over real TLS, which keep their answers as real ones do (SPEC 4.10).
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Iterable

import msgspec
import pytest

from appliance.coordinator.config import WaitSettings
from appliance.coordinator.server import Coordinator
from enclave import wire
from policies.errors import Unavailable
from policies.requests import body_digest
from tests.fakes.coordinator_side import FakeNetwork, FakeSigner, until
from tests.unit.test_coordinator_batches import batch, path_of
from tests.unit.test_coordinator_requests import check, creation, hash_body, make_key

QUICK = WaitSettings(signers_s=0.2, pool_s=10.0)


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made, made.all_connected():
        yield made


@contextlib.asynccontextmanager
async def restarted(net: FakeNetwork) -> AsyncIterator[None]:
    """A coordinator that starts on the same files, its signers connected."""
    async with Coordinator(net.config) as coordinator:
        net.use(coordinator)
        for signer in net.signers:
            signer.online = ()
            signer.answers.clear()
            signer.orders.clear()
        async with net.client(), net.all_connected():
            yield


def withholding(signer: FakeSigner, *, batch: bool = False) -> None:
    """The signer gives its shares, and the coordinator does not get them."""

    def give(order: wire.OnlineOrder | wire.BatchOnlineOrder) -> Iterable[wire.Wire]:
        signer.keep(order, signer.batch_shares(order) if batch else signer.share(order))  # type: ignore[arg-type]
        return []

    signer.answers[wire.BatchOnlineOrder if batch else wire.OnlineOrder] = give  # type: ignore[assignment]


def count(net: FakeNetwork, kind: type[wire.Wire]) -> list[int]:
    return [len(signer.received(kind)) for signer in net.signers]


# --- Failed, Rejected, Signed: the same request again ---


async def test_a_failed_request_is_taken_up_again_under_its_external_id(net: FakeNetwork) -> None:
    path = f"/v1/keys/{await make_key(net)}/signatures"
    net.signers[1].answers[wire.SignOrder] = lambda order: [wire.RequestRefused(order.ceremony, "unavailable", "hsm")]
    status, failed = await net.post(path, hash_body())
    assert (status, failed["status"], failed["reason"]["code"]) == (201, "Failed", "unavailable")
    net.signers[1].answers.clear()
    status, shown = await net.post(path, hash_body())
    assert (status, shown["status"], shown["id"], "reason" in shown) == (200, "Signed", failed["id"], False)
    check(net, shown)
    orders = count(net, wire.OnlineOrder)
    assert (await net.post(path, hash_body())) == (200, shown)
    assert count(net, wire.OnlineOrder) == orders == [1, 1, 1]


async def test_a_failed_batch_and_a_failed_key_too(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    for kind, where, body, good in (
        (wire.BatchSignOrder, path_of(key_id), batch(), "Signed"),
        (wire.KeygenOrder, "/v1/keys", creation("key-2", label="two"), "Active"),
    ):
        for signer in net.signers:
            signer.answers[kind] = lambda order: [wire.RequestRefused(order.ceremony, "unavailable", "hsm away")]
        _, failed = await net.post(where, body)
        assert failed["status"] == "Failed", failed
        for signer in net.signers:
            signer.answers.clear()
        status, shown = await net.post(where, body)
        assert (status, shown["status"]) == (200, good), shown


async def test_a_rejected_request_stays_rejected(net: FakeNetwork) -> None:
    path = f"/v1/keys/{await make_key(net)}/signatures"
    net.signers[1].answers[wire.SignOrder] = lambda order: [wire.RequestRefused(order.ceremony, "gate", "no")]
    status, rejected = await net.post(path, hash_body())
    assert (status, rejected["status"]) == (201, "Rejected")
    net.signers[1].answers.clear()
    orders = count(net, wire.SignOrder)
    assert await net.post(path, hash_body()) == (200, rejected)
    assert count(net, wire.SignOrder) == orders


async def test_an_expired_request_has_failed_and_may_be_signed_anew(net: FakeNetwork) -> None:
    path = f"/v1/keys/{await make_key(net)}/signatures"
    net.signers[1].answers[wire.SignOrder] = lambda order: [wire.RequestRefused(order.ceremony, "request/expired", "")]
    _, failed = await net.post(path, hash_body())
    assert (failed["status"], failed["reason"]["code"]) == ("Failed", "request/expired")
    net.signers[1].answers.clear()
    assert (await net.post(path, hash_body()))[1]["status"] == "Signed"


async def test_an_external_id_that_the_signers_know_as_another_requests_is_a_conflict_and_is_free_again(
    net: FakeNetwork,
) -> None:
    path = f"/v1/keys/{await make_key(net)}/signatures"
    net.signers[1].answers[wire.SignOrder] = lambda order: [
        wire.RequestRefused(order.ceremony, "request/external-id", "this externalId stands for another request")
    ]
    status, shown = await net.post(path, hash_body(path=(1,)))
    assert (status, shown["code"]) == (409, "external-id-taken")
    net.signers[1].answers.clear()
    # The body that the signers know is not refused for the one that they don't.
    status, shown = await net.post(path, hash_body())
    assert (status, shown["status"], shown["externalId"]) == (201, "Signed", "sig-1")


# --- signers away ---


async def test_without_enough_signers_a_request_fails_soon_and_names_who_is_away(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path, wait=QUICK) as net:
        async with net.all_connected():
            path = f"/v1/keys/{await make_key(net)}/signatures"
        for signer in net.signers:
            signer.online = ()
        async with contextlib.AsyncExitStack() as stack:
            for signer in net.signers[:2]:
                await stack.enter_async_context(signer.connected(net.gateway, net.files))
            await until(lambda: net.coordinator.network.signers.online() == (1, 2))
            began_s = asyncio.get_running_loop().time()
            shown = await asyncio.gather(*(net.post(path, hash_body(f"away-{number}")) for number in range(5)))
            assert asyncio.get_running_loop().time() - began_s < 5
            for _, one in shown:
                assert (one["status"], one["reason"]["code"]) == ("Failed", "no-committee")
                assert one["reason"]["message"] == "3 signers must be online; away: signer-3"
            _, key = await net.post("/v1/keys", creation("key-away"))
            assert (key["status"], key["reason"]["message"]) == ("Failed", "all signers must be online; away: signer-3")
            await stack.enter_async_context(net.signers[2].connected(net.gateway, net.files))
            await net.ready()
            status, again = await net.post(path, hash_body("away-0"))
            assert (status, again["status"], again["id"]) == (200, "Signed", shown[0][1]["id"])


# --- a restart of the coordinator ---


async def test_a_request_whose_shares_were_all_given_ends_signed_after_a_restart_without_another_attempt(
    tmp_path: pathlib.Path,
) -> None:
    async with FakeNetwork.start(tmp_path) as net, net.all_connected():
        path = f"/v1/keys/{await make_key(net)}/signatures"
        withholding(net.signers[1])
        _, pending = await net.post(path, hash_body(), wait_s=0)
        await until(lambda: bool(net.signers[1].kept))
    async with restarted(net):
        status, shown = await net.post(path, hash_body())
        assert (status, shown["status"], shown["id"]) == (200, "Signed", pending["id"])
        check(net, shown)
        assert count(net, wire.SignOrder) == count(net, wire.OnlineOrder) == [0, 0, 0]


async def test_a_batch_whose_shares_were_all_given_ends_signed_after_a_restart(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path) as net, net.all_connected():
        path = path_of(await make_key(net))
        withholding(net.signers[1], batch=True)
        _, pending = await net.post(path, batch(), wait_s=0)
        await until(lambda: bool(net.signers[1].kept))
    async with restarted(net):
        status, shown = await net.post(path, batch())
        assert (status, shown["status"], shown["id"]) == (200, "Signed", pending["id"])
        assert count(net, wire.BatchSignOrder) == [0, 0, 0]


async def test_a_request_with_a_share_missing_is_attempted_anew_after_a_restart(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path) as net:
        async with net.all_connected():
            path = f"/v1/keys/{await make_key(net)}/signatures"
            net.signers[1].answers[wire.OnlineOrder] = lambda order: []
            await net.post(path, hash_body(), wait_s=0)
            await until(lambda: bool(net.signers[0].kept and net.signers[2].kept))
        answered = net.signers[0].kept["sig-1"].report.ceremony
    async with restarted(net):
        assert (await net.post(path, hash_body()))[1]["status"] == "Signed"
        (first,), (second,) = (net.signers[index].received(wire.SignOrder) for index in (0, 1))
        assert (first.after, second.after) == (answered, None)  # type: ignore[attr-defined]


async def test_an_unfinished_key_is_made_after_a_restart_or_taken_as_it_was_made(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path) as net, net.all_connected():
        for signer in net.signers:
            signer.answers[wire.KeygenOrder] = lambda order: []
        await net.post("/v1/keys", creation("made"), wait_s=0)
        await net.post("/v1/keys", creation("unmade", label="other"), wait_s=0)
        await until(lambda: count(net, wire.KeygenOrder) == [2, 2, 2])
        request = net.signers[0].received(wire.KeygenOrder)[0].requests[0]  # type: ignore[attr-defined]
        made = "made" if b'"made"' in request.body else "unmade"
        for signer in net.signers:
            _, certificate = signer.acknowledgements(request)
            report = wire.KeysActivated(b"before-ceremony-", (certificate,))
            signer.kept[made] = wire.Answer(
                wire.Kept(bytes(32), body_digest(request.path, request.body), bytes(32), net.dealer.roster.indices),
                report,
            )
    async with restarted(net):
        for name, label in (("made", "treasury"), ("unmade", "other")):
            status, shown = await net.post("/v1/keys", creation(name, label=label))
            assert (status, shown["status"], shown["externalId"]) == (200, "Active", name)
        assert count(net, wire.KeygenOrder) == [1, 1, 1]


async def test_one_signer_cant_pass_another_key_off_as_the_one_that_was_asked_for(net: FakeNetwork) -> None:
    """It shows a certificate that verifies, of the right label, as what came of the request; the others know better."""
    key_id = await make_key(net)
    liar = net.signers[1]
    request = liar.received(wire.KeygenOrder)[0].requests[0]  # type: ignore[attr-defined]
    _, certificate = liar.acknowledgements(request)
    report = wire.KeysActivated(b"another-ceremony", (certificate,))

    def lie(order: wire.KeygenOrder | wire.RecallOrder) -> Iterable[wire.Wire]:
        asked = order.requests[0] if isinstance(order, wire.KeygenOrder) else order.request
        kept = wire.Kept(bytes(32), body_digest(asked.path, asked.body), bytes(32), net.dealer.roster.indices)
        if isinstance(order, wire.KeygenOrder) and order.after == report.ceremony:
            return liar.honest(order)
        return [wire.Recalled(order.ceremony, wire.Answer(kept, report))]

    liar.answers |= {wire.KeygenOrder: lie, wire.RecallOrder: lie}  # type: ignore[dict-item]
    status, other = await net.post("/v1/keys", creation("key-2"))
    assert (status, other["status"]) == (201, "Active")
    assert other["id"] != key_id


# --- an earlier attempt elsewhere ---


def signed_elsewhere(net: FakeNetwork, path: str, members: tuple[int, ...]) -> None:
    """Another coordinator has had `hash_body()` signed by `members`."""
    body = msgspec.json.encode(hash_body())
    request = wire.ClientRequest("POST", path, body, net.sign(path, body))
    name = wire.PresignatureName(bytes(32), 1)
    key_id = path.split("/")[3]
    order = wire.SignOrder(b"elsewhere-------", key_id, request, members, name)
    authorizations = []
    for j in members:
        net.signers[j - 1].is_answered(order)
        authorizations.append(net.signers[j - 1].authorization(order))
    online = wire.OnlineOrder(b"elsewhere-online", key_id, tuple(authorizations))
    for j in members:
        net.signers[j - 1].keep(online, net.signers[j - 1].share(online))


async def test_what_was_signed_through_another_coordinator_is_not_signed_again(net: FakeNetwork) -> None:
    path = f"/v1/keys/{await make_key(net)}/signatures"
    signed_elsewhere(net, path, (1, 2, 3))
    status, shown = await net.post(path, hash_body())
    assert (status, shown["status"]) == (201, "Signed")
    check(net, shown)
    assert count(net, wire.OnlineOrder) == [0, 0, 0]


async def test_a_wrong_share_of_an_earlier_attempt_does_not_stand_in_the_way_of_the_next(net: FakeNetwork) -> None:
    path = f"/v1/keys/{await make_key(net)}/signatures"
    signed_elsewhere(net, path, (1, 2, 3))
    lying = net.signers[1]
    answer = lying.kept["sig-1"]
    lying.kept["sig-1"] = wire.Answer(answer.kept, msgspec.structs.replace(answer.report, s=b"\x01" * 32))
    status, shown = await net.post(path, hash_body())
    assert (status, shown["status"]) == (201, "Signed")
    check(net, shown)
    assert count(net, wire.OnlineOrder) == [1, 1, 1]


@pytest.mark.parametrize("field", ["body", "committee"])
async def test_an_answer_to_something_else_is_not_taken(net: FakeNetwork, field: str) -> None:
    """A signer that shows its answer to another body, or of a committee that it is not in."""
    path = f"/v1/keys/{await make_key(net)}/signatures"
    signed_elsewhere(net, path, (1, 2, 3))
    other = {"body": bytes(32), "committee": (2, 3, 4)}[field]
    for signer in net.signers:
        answer = signer.kept["sig-1"]
        signer.kept["sig-1"] = wire.Answer(msgspec.structs.replace(answer.kept, **{field: other}), answer.report)
    _, shown = await net.post(path, hash_body())
    assert shown["status"] == "Signed"
    assert count(net, wire.OnlineOrder) == [1, 1, 1]


async def test_where_the_missing_share_may_be_at_a_signer_that_is_away_nothing_is_signed(
    tmp_path: pathlib.Path,
) -> None:
    async with FakeNetwork.start(tmp_path, n=5, t=1) as net:
        async with net.all_connected():
            body = creation(signers=5)
            path = f"/v1/keys/{(await net.post('/v1/keys', body))[1]['id']}/signatures"
        signed_elsewhere(net, path, (1, 2, 3))
        for signer in net.signers:
            signer.online = ()
        async with contextlib.AsyncExitStack() as stack:
            for index in (0, 1, 3, 4):
                await stack.enter_async_context(net.signers[index].connected(net.gateway, net.files))
            await net.ready()
            _, shown = await net.post(path, hash_body())
            assert (shown["status"], shown["reason"]["code"]) == ("Failed", "earlier-attempt")
            assert shown["reason"]["signer"] == "signer-3"
            assert count(net, wire.OnlineOrder) == [0] * 5
            await stack.enter_async_context(net.signers[2].connected(net.gateway, net.files))
            await until(lambda: net.coordinator.network.signers.online() == (1, 2, 3, 4, 5))
            _, again = await net.post(path, hash_body())
            assert (again["status"], again["id"]) == ("Signed", shown["id"])
            assert count(net, wire.OnlineOrder) == [0] * 5


async def test_one_signer_cant_answer_the_making_of_a_key_for_the_others(net: FakeNetwork) -> None:
    """It tells at once of another key's activation, whose certificate verifies and has the right label."""
    key_id = await make_key(net)
    liar, *others = net.signers
    _, certificate = liar.acknowledgements(liar.received(wire.KeygenOrder)[0].requests[0])  # type: ignore[attr-defined]
    liar.answers[wire.KeygenOrder] = lambda order: [wire.KeysActivated(order.ceremony, (certificate,))]
    for signer in others:
        signer.answers[wire.KeygenOrder] = lambda order: []
    await net.post("/v1/keys", creation("key-2"), wait_s=0)
    await until(lambda: count(net, wire.KeygenOrder) == [2, 2, 2])
    order = others[0].received(wire.KeygenOrder)[1]
    # The lie has been heard before the truth.
    taken = net.coordinator.network.ceremonies._open[order.ceremony]  # type: ignore[attr-defined]
    await until(lambda: taken._waiting[1] == 0 and 1 in taken._waiting)
    for signer in others:
        for report in signer.honest(order):
            await signer.report(report)
    status, other = await net.post("/v1/keys", creation("key-2"))
    assert (status, other["status"]) == (200, "Active")
    expected, _ = liar.acknowledgements(order.requests[0])  # type: ignore[attr-defined]
    assert other["id"] == expected.acknowledgement.key_id != key_id


async def test_a_key_that_is_another_requests_fails_the_request_and_nothing_else(net: FakeNetwork) -> None:
    """More signers lie than may."""
    key_id = await make_key(net)
    _, certificate = net.signers[0].acknowledgements(net.signers[0].received(wire.KeygenOrder)[0].requests[0])  # type: ignore[attr-defined]
    for signer in net.signers:
        signer.answers[wire.KeygenOrder] = lambda order: [wire.KeysActivated(order.ceremony, (certificate,))]
    status, failed = await net.post("/v1/keys", creation("key-2"))
    assert (status, failed["status"], failed["reason"]["code"]) == (201, "Failed", "certificate")
    assert (await net.get(f"/v1/keys/{key_id}"))[1]["status"] == "Active"


# --- who has no say ---


def conflict(order: wire.Wire) -> Iterable[wire.Wire]:
    return [wire.RequestRefused(order.ceremony, "request/external-id", "this externalId stands for another request")]  # type: ignore[attr-defined]


NO_SAY = {
    "silent": lambda order: [],
    "busy": lambda order: [wire.RequestRefused(order.ceremony, "busy", "later")],
    "conflict": conflict,
    "nonsense": lambda order: [wire.SetupDone(order.ceremony, 1)],
    "flood": lambda order: [wire.Recalled(order.ceremony, None)] * 200,
}


@pytest.mark.parametrize("how", NO_SAY)
async def test_one_signer_has_no_veto_over_a_request_that_is_taken_up_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("appliance.coordinator.recall.RECALL_TIMEOUT_S", 1.0)
    async with FakeNetwork.start(tmp_path, n=4, t=1) as net, net.all_connected():
        path = f"/v1/keys/{(await net.post('/v1/keys', creation(signers=4)))[1]['id']}/signatures"
        for signer in net.signers:
            signer.answers[wire.SignOrder] = lambda order: [wire.RequestRefused(order.ceremony, "key", "away")]
        assert (await net.post(path, hash_body()))[1]["status"] == "Failed"
        for signer in net.signers:
            signer.answers.clear()
        net.signers[3].answers[wire.RecallOrder] = NO_SAY[how]
        status, shown = await net.post(path, hash_body())
        assert (status, shown["status"]) == (200, "Signed"), shown
        assert len(net.signers[3].received(wire.RecallOrder)) == 1


async def test_more_signers_than_may_lie_can_say_that_the_external_id_is_another_requests(
    tmp_path: pathlib.Path,
) -> None:
    async with FakeNetwork.start(tmp_path, n=4, t=1) as net, net.all_connected():
        path = f"/v1/keys/{(await net.post('/v1/keys', creation(signers=4)))[1]['id']}/signatures"
        for signer in net.signers:
            signer.answers[wire.SignOrder] = lambda order: [wire.RequestRefused(order.ceremony, "key", "away")]
        assert (await net.post(path, hash_body()))[1]["status"] == "Failed"
        for signer in net.signers[2:]:
            signer.answers[wire.RecallOrder] = conflict
        assert (await net.post(path, hash_body()))[1]["code"] == "external-id-taken"


# --- committees that have nobody in common ---


async def test_where_committees_can_be_disjoint_a_new_request_is_asked_after_first(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path, n=6, t=1, wait=QUICK) as net:
        async with net.all_connected():
            path = f"/v1/keys/{(await net.post('/v1/keys', creation(signers=6)))[1]['id']}/signatures"
            signed_elsewhere(net, path, (4, 5, 6))
            status, shown = await net.post(path, hash_body())
            assert (status, shown["status"]) == (201, "Signed")
            check(net, shown)
            assert count(net, wire.SignOrder) == [0] * 6
        for signer in net.signers:
            signer.online = ()
        async with contextlib.AsyncExitStack() as stack:
            for signer in net.signers[:3]:
                await stack.enter_async_context(signer.connected(net.gateway, net.files))
            await until(lambda: net.coordinator.network.signers.online() == (1, 2, 3))
            _, failed = await net.post(path, hash_body("sig-2"))
            assert (failed["status"], failed["reason"]["code"]) == ("Failed", "no-committee")
            assert "4 signers must be online" in failed["reason"]["message"]
            assert count(net, wire.SignOrder) == [0] * 6


# --- a store that has no room for a moment ---


async def test_a_result_that_finds_the_queue_of_the_store_full_is_written_once_it_has_room(
    net: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/keys/{await make_key(net)}/signatures"
    writer = net.coordinator.network._keybook._store._writer
    turned_away = 0

    def share(order: wire.OnlineOrder) -> Iterable[wire.Wire]:
        monkeypatch.setattr(writer, "_max_queued", 0)
        return net.signers[0].honest(order)

    submit = writer.submit

    async def counted(write: object) -> object:
        nonlocal turned_away
        try:
            return await submit(write)  # type: ignore[arg-type]
        except Unavailable:
            turned_away += 1
            raise

    monkeypatch.setattr(writer, "submit", counted)
    net.signers[0].answers[wire.OnlineOrder] = share  # type: ignore[assignment]
    _, pending = await net.post(path, hash_body(), wait_s=0)
    await until(lambda: turned_away >= 2)
    monkeypatch.setattr(writer, "_max_queued", 4096)
    status, shown = await net.post(path, hash_body())
    assert (status, shown["status"], shown["id"]) == (200, "Signed", pending["id"])
    assert count(net, wire.OnlineOrder) == [1, 1, 1]
