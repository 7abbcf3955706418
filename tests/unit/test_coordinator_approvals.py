"""Approvals at the coordinator, with fake signers over real TLS: carried, kept, refused, ended by their deadline. Of
single signatures and of batches."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import msgspec
import pytest

from appliance.api.approvals import ApprovalsWanted
from appliance.coordinator import work
from appliance.coordinator.server import Coordinator
from enclave import wire
from policies.signed_requests import claimed_client
from tests.fakes.clients import TestClient
from tests.fakes.coordinator_side import FakeNetwork, FakeSigner, until
from tests.unit import test_coordinator_batches as batches
from tests.unit.test_coordinator_requests import check, hash_body, make_key

HOURS_S = 8 * 3600
ORDERS = (wire.SignOrder, wire.BatchSignOrder)
KINDS = pytest.mark.parametrize("batch", [False, True], ids=["signature", "batch"])


def lacking(signer: FakeSigner, wanted: int) -> Callable[[Any], Iterable[wire.Wire]]:
    def answer(order: wire.SignOrder | wire.BatchSignOrder) -> Iterable[wire.Wire]:
        given = len({claimed_client(jws) for jws in order.request.approvals})
        if given >= wanted:
            return signer.honest(order)
        reason = f"{wanted} approvals are needed, {given} given"
        return [wire.RequestRefused(order.ceremony, "policy/approvals", reason)]

    return answer


def need_approvals(net: FakeNetwork) -> None:
    for signer in net.signers:
        for kind in ORDERS:
            signer.answers[kind] = lacking(signer, 2)


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made, made.all_connected():
        need_approvals(made)
        yield made


class Request:
    """A request that awaits two approvals: for a signature, or for a `batch` of three."""

    def __init__(self, net: FakeNetwork, key_id: str, batch: bool = False) -> None:
        self.net, self.batch, self.id = net, batch, ""
        self.path = batches.path_of(key_id) if batch else f"/v1/keys/{key_id}/signatures"
        self.asked = batches.batch() if batch else hash_body()
        self.body = msgspec.json.encode(self.asked)

    async def ask(self, lifetime_s: int = HOURS_S) -> dict[str, Any]:
        """Sign it, perhaps again."""
        jws = self.net.files.signer.request(self.path, self.body, exp=int(time.time()) + lifetime_s).jws
        _, shown = await self.net.post(self.path, self.body, jws=jws)
        self.id = str(shown["id"])
        return shown

    def approval(self, client: TestClient, /, **header: Any) -> str:
        return client.approval(wire.ClientRequest("POST", self.path, self.body, ""), **header)

    async def bring(self, client: TestClient, approval: str) -> tuple[int, dict[str, Any]]:
        """Send an approval as `client`."""
        path = f"{self.path}/{self.id}/approvals"
        body = msgspec.json.encode({"approval": approval})
        return await self.net.post(path, body, jws=client.request(path, body).jws)

    async def approve(self, name: str) -> tuple[int, dict[str, Any]]:
        client = self.net.files.approvers[name]
        return await self.bring(client, self.approval(client))

    async def shown(self) -> dict[str, Any]:
        return (await self.net.get(f"{self.path}/{self.id}"))[1]

    def check(self, shown: dict[str, Any]) -> None:
        """Every signature in it verifies."""
        if not self.batch:
            check(self.net, shown)
            return
        for result, h, path in zip(shown["results"], self.asked["hashes"], batches.PATHS, strict=True):  # type: ignore[call-overload]
            batches.check(self.net, result, h, path)


@pytest.fixture(params=[False, True], ids=["signature", "batch"])
async def request_(net: FakeNetwork, request: pytest.FixtureRequest) -> Request:
    asked = Request(net, await make_key(net), request.param)
    shown = await asked.ask()
    assert (shown["status"], shown["reason"]["message"]) == ("AwaitingApprovals", "2 approvals are needed, 0 given")
    return asked


def orders(net: FakeNetwork) -> int:
    return sum(len(net.signers[0].received(kind)) for kind in ORDERS)


async def test_two_approvals_are_carried_with_the_request(net: FakeNetwork, request_: Request) -> None:
    status, shown = await request_.approve("alice")
    assert (status, shown["status"], shown["reason"]["message"]) == (
        202, "AwaitingApprovals", "2 approvals are needed, 1 given",
    )  # fmt: skip
    wanted = msgspec.convert((await net.get(f"{request_.path}/{request_.id}/approvals"))[1], ApprovalsWanted)
    assert (wanted.body, wanted.path, wanted.requester) == (request_.body.decode(), request_.path, "payments")
    assert (wanted.approved_by, wanted.status) == (("alice",), "AwaitingApprovals")
    status, shown = await request_.approve("bob")
    assert (status, shown["status"]) == (200, "Signed")
    request_.check(shown)
    kind = wire.BatchSignOrder if request_.batch else wire.SignOrder
    assert {len(order.request.approvals) for order in net.signers[0].received(kind)} == {0, 1, 2}  # type: ignore[attr-defined]


@KINDS
async def test_waits_and_approvals_survive_a_restart(tmp_path: pathlib.Path, batch: bool) -> None:
    async with FakeNetwork.start(tmp_path) as net, net.all_connected():
        need_approvals(net)
        asked = Request(net, await make_key(net), batch)
        await asked.ask()
        assert (await asked.approve("alice"))[1]["status"] == "AwaitingApprovals"
    async with Coordinator(net.config) as again:
        net.use(again)
        for signer in net.signers:
            signer.online = ()
        async with net.client(), net.all_connected():
            assert (await asked.shown())["reason"]["message"] == "2 approvals are needed, 1 given"
            assert (await asked.approve("bob"))[1]["status"] == "Signed"


async def test_signed_again_while_it_waits_it_waits_as_it_was_signed_first(net: FakeNetwork, request_: Request) -> None:
    before = orders(net)
    assert (await request_.ask(60))["status"] == "AwaitingApprovals"
    wanted = msgspec.convert((await net.get(f"{request_.path}/{request_.id}/approvals"))[1], ApprovalsWanted)
    assert wanted.expires > time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + HOURS_S - 600))
    assert orders(net) == before


async def test_what_is_not_approved_in_time_has_failed_and_its_approvals_count_when_it_is_signed_anew(
    net: FakeNetwork, request_: Request
) -> None:
    await request_.approve("alice")
    deadlines = net.coordinator.deadlines
    await deadlines.end_late(time.time() + HOURS_S - 60)
    assert (await request_.shown())["status"] == "AwaitingApprovals"
    await deadlines.end_late(time.time() + HOURS_S)
    shown = await request_.shown()
    assert (shown["status"], shown["reason"]) == (
        "Failed",
        {"code": "approvals/late", "message": "2 approvals are needed, 1 given", "signer": shown["reason"]["signer"]},
    )
    assert (await request_.approve("bob"))[0] == 422
    assert (await request_.ask())["reason"]["message"] == "2 approvals are needed, 1 given"
    assert (await request_.approve("bob"))[1]["status"] == "Signed"


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"kid": "bob"}, "does not verify"),
        ({"kid": "mallory"}, "no client"),
        ({"network": "other"}, "another network"),
        ({"path": "/v1/keys"}, "another method or path"),
        ({"method": "POST"}, "another method or path"),
        ({"exp": 1}, "iat"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_what_enclaves_would_pass_over_is_refused(
    net: FakeNetwork, request_: Request, header: dict[str, Any], told: str
) -> None:
    alice, before = net.files.approvers["alice"], orders(net)
    status, shown = await request_.bring(alice, request_.approval(alice, **header))
    assert (status, told in str(shown["detail"])) == (422, True), shown
    assert orders(net) == before


async def test_whose_approval_it_is(net: FakeNetwork, request_: Request) -> None:
    """Nobody's who brings another's, nor the requester's own; and none of another body."""
    alice, bob = net.files.approvers.values()
    assert (await request_.bring(bob, request_.approval(alice)))[0] == 422
    requester = net.files.signer
    status, shown = await request_.bring(requester, request_.approval(requester))
    assert (status, "its own request" in str(shown["detail"])) == (422, True)
    other = wire.ClientRequest("POST", request_.path, b"{}", "")
    assert (await request_.bring(alice, alice.approval(other)))[0] == 422
    assert (await request_.shown())["reason"]["message"] == "2 approvals are needed, 0 given"


@KINDS
async def test_an_approval_that_comes_while_signers_are_asked_is_not_forgotten(net: FakeNetwork, batch: bool) -> None:
    asked = Request(net, await make_key(net), batch)
    slow, kind = net.signers[0], wire.BatchSignOrder if batch else wire.SignOrder
    for signer in net.signers:
        signer.answers[kind] = lambda order: []
    path, name = asked.path, net.files.signer.request(asked.path, asked.body, exp=int(time.time()) + HOURS_S)
    _, shown = await net.post(path, asked.body, wait_s=0, jws=name.jws)
    asked.id = str(shown["id"])
    await until(lambda: slow.received(kind))
    for approver in net.files.approvers.values():
        client_path = f"{path}/{asked.id}/approvals"
        body = msgspec.json.encode({"approval": asked.approval(approver)})
        status, _ = await net.post(client_path, body, wait_s=0, jws=approver.request(client_path, body).jws)
        assert status == 202
    (order,) = slow.received(kind)
    need_approvals(net)
    await slow.report(wire.RequestRefused(order.ceremony, "policy/approvals", "2 approvals are needed, 0 given"))

    async def signed() -> bool:
        return (await asked.shown())["status"] == "Signed"

    deadline_s = time.monotonic() + 20
    while not await signed():
        assert time.monotonic() < deadline_s


@KINDS
async def test_an_approval_of_one_kind_is_none_of_the_other(net: FakeNetwork, batch: bool) -> None:
    """Not even where both say the same path and body: it is looked for where the request is."""
    key_id = await make_key(net)
    asked, other = Request(net, key_id, batch), Request(net, key_id, not batch)
    for each in (asked, other):
        await each.ask()
    alice = net.files.approvers["alice"]
    assert (await asked.bring(alice, other.approval(alice)))[0] == 422
    asked.id = other.id
    assert (await asked.bring(alice, asked.approval(alice)))[0] == 404
    assert (await other.shown())["reason"]["message"] == "2 approvals are needed, 0 given"


async def test_a_batch_whose_approval_finds_no_place_still_awaits_it(
    net: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Request(net, await make_key(net), batch=True)
    await asked.ask()
    assert (await asked.approve("alice"))[1]["status"] == "AwaitingApprovals"
    with monkeypatch.context() as patched:
        patched.setattr(work, "MAX_BATCHES_UNDER_WAY", 0)
        status, told = await asked.approve("bob")
        assert (status, "batches are under way" in str(told["detail"])) == (503, True)
    assert (await asked.shown())["reason"]["message"] == "2 approvals are needed, 1 given"
    # Those before have given their places back.
    monkeypatch.setattr(work, "MAX_BATCHES_UNDER_WAY", 1)
    assert (await asked.approve("bob"))[1]["status"] == "Signed"


async def test_approvals_are_kept_until_they_expire_and_no_longer(net: FakeNetwork, request_: Request) -> None:
    now_s = time.time()
    alice, bob = net.files.approvers.values()
    await request_.bring(alice, request_.approval(alice, exp=int(now_s) + 600))
    await request_.bring(bob, request_.approval(bob, exp=int(now_s) + 7200))
    assert (await request_.shown())["status"] == "Signed"
    deadlines = net.coordinator.deadlines
    for later_s, kept in ((0, ["alice", "bob"]), (599, ["alice", "bob"]), (601, ["bob"]), (7201, [])):
        await deadlines.forget_expired(now_s + later_s)
        with contextlib.closing(sqlite3.connect(net.config.state)) as connection:
            rows = connection.execute("select approver from approvals order by approver").fetchall()
        assert [name for (name,) in rows] == kept
