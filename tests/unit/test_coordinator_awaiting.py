"""How many requests may await approvals at a coordinator, and how their deadlines are found."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
import time
from collections.abc import AsyncIterator

import alembic.command
import pytest
import structlog

from appliance.api.jws import generate_client_key, new_jti, sign_request
from appliance.coordinator import execution, work
from appliance.coordinator.approving import Deadlines
from appliance.coordinator.metrics import approvals_wanted
from appliance.store import CoordinatorStore
from appliance.store.accepted import AWAITING, Accepted
from appliance.store.awaiting import Awaited
from tests.fakes.coordinator_side import FakeNetwork
from tests.unit.test_coordinator_approvals import HOURS_S, Request, need_approvals, orders
from tests.unit.test_coordinator_requests import hash_body, make_key


@pytest.fixture
async def net(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeNetwork]:
    for module in (execution, work):
        monkeypatch.setattr(module, "MAX_AWAITING", 2)
    async with FakeNetwork.start(tmp_path) as made, made.all_connected():
        need_approvals(made)
        yield made


class Named(Request):
    """One of several."""

    def __init__(self, net: FakeNetwork, key_id: str, name: str) -> None:
        super().__init__(net, key_id)
        self.body = self.body.replace(hash_body()["externalId"].encode(), name.encode())  # type: ignore[attr-defined]

    async def post(self, lifetime_s: int) -> tuple[int, dict[str, object]]:
        jws = self.net.files.signer.request(self.path, self.body, exp=int(time.time()) + lifetime_s).jws
        return await self.net.post(self.path, self.body, jws=jws)


async def test_a_client_has_only_so_many_requests_that_await_approvals(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    first, second, third, short = (Named(net, key_id, name) for name in ("one", "two", "three", "short"))
    for each in (first, second):
        assert (await each.ask())["status"] == AWAITING
    before = orders(net)
    status, told = await third.post(HOURS_S)
    assert (status, told["code"], orders(net)) == (429, "too-many-awaiting", before), told
    # What is known already is answered as it stands.
    assert (await second.post(HOURS_S))[1]["status"] == AWAITING
    # One that was not signed to wait is asked for, since a policy may want no approvals of it.
    status, told = await short.post(60)
    assert (status, told["status"], told["reason"]["code"]) == (201, "Failed", "approvals/too-many"), told
    for name in ("alice", "bob"):
        _, shown = await first.approve(name)
    assert shown["status"] == "Signed"
    assert (await third.ask())["status"] == AWAITING
    assert (await short.post(60))[1]["reason"]["code"] == "approvals/too-many"
    await net.coordinator.deadlines.end_late(time.time() + HOURS_S + 60)
    assert (await third.shown())["reason"]["code"] == "approvals/late"
    assert (await short.post(60))[1]["status"] == AWAITING


async def test_how_many_await_approvals_is_shown(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    assert "awaitingApprovals" not in (await net.get("/v1/coordinator"))[1]
    for name in ("one", "two"):
        await Named(net, key_id, name).ask()
    assert (await net.get("/v1/coordinator"))[1]["awaitingApprovals"] == 2


async def test_how_many_await_approvals_and_until_when_is_told(tmp_path: pathlib.Path) -> None:
    store, name = CoordinatorStore.open(tmp_path / "coordinator.db"), "keymoot_coordinator_approvals_"

    def told() -> dict[str, float]:
        return {sample.name: sample.value for family in approvals_wanted(store) for sample in family.samples}

    assert told() == {name + "awaited": 0}
    for number in (1, 2):
        await store.signatures.accept(accepted(number), "key_1", "Hash", ())
        facts = Awaited(f"sig_{number}", "pay", 900 - number)
        await store.signatures.await_approvals(facts, 9, "policy/approvals", "2", "s")
    assert told() == {name + "awaited": 2, name + "deadline_timestamp_seconds": 898}
    await store.close()


async def test_a_request_keeps_its_place_while_it_is_tried_again(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    first, second = Named(net, key_id, "one"), Named(net, key_id, "two")
    for each in (first, second):
        await each.ask()
    assert (await first.approve("alice"))[1]["status"] == AWAITING
    assert (await Named(net, key_id, "three").post(HOURS_S))[0] == 429


def accepted(number: int, client: str = "pay", jws: str = "") -> Accepted:
    name, digest = f"sig_{number}", bytes([number]) * 32
    return Accepted(
        id=name, external_id=name, path="p", body=b"", jws=jws, created_at_ms=1, digest=digest, client=client
    )


async def test_deadlines_are_read_as_they_are_due(tmp_path: pathlib.Path) -> None:
    store = CoordinatorStore.open(tmp_path / "coordinator.db")
    for number in range(1, 6):
        await store.signatures.accept(accepted(number), "key_1", "Hash", ())
        assert await store.signatures.await_approvals(
            Awaited(f"sig_{number}", "pay", 100 * number), 9, "policy/approvals", "2", "s"
        )
    assert (store.awaiting.due(300, 2), store.awaiting.due(300, 9)) == (["sig_1", "sig_2"], ["sig_1", "sig_2", "sig_3"])
    assert (store.awaiting.of("pay"), store.awaiting.of("other"), store.awaiting.first_s()) == (5, 0, 100)
    await Deadlines(store, time.time).end_late(300)
    assert (store.awaiting.due(400, 9), store.awaiting.of("pay"), store.awaiting.first_s()) == (["sig_4"], 2, 400)
    row = store.signatures.get("sig_3")
    assert row is not None
    assert (row.state, row.reason_code) == ("Failed", "approvals/late")
    # One that is under way when its time is over is ended when it awaits approvals again.
    assert await store.signatures.take_up("sig_4")
    await Deadlines(store, time.time).end_late(400)
    assert store.awaiting.due(400, 9) == []
    assert await store.signatures.await_approvals(Awaited("sig_4", "pay", 400), 9, "policy/approvals", "2", "s")
    await Deadlines(store, time.time).end_late(400)
    row = store.signatures.get("sig_4")
    assert row is not None
    assert row.state == "Failed"
    assert await store.signatures.take_up("sig_5")
    await store.signatures.end("sig_5", "Rejected", "gate", "no", "")
    assert (store.awaiting.of("pay"), store.awaiting.first_s()) == (0, None)
    await store.close()


async def test_a_clock_that_was_set_forward_ends_nothing_until_there_was_time_to_set_it_right(
    net: FakeNetwork,
) -> None:
    """A clock that was days ahead for a moment ended all that waited, and accepted approvals were lost."""
    key_id = await make_key(net)
    request = Named(net, key_id, "one")
    await request.ask()
    await request.approve("alice")
    store, wall, passed = net.coordinator.deadlines._store, [time.time()], [0.0]
    deadlines = Deadlines(store, lambda: wall[0], lambda: passed[0])

    async def after(seconds: float, stepped_s: float = 0.0) -> tuple[object, object]:
        wall[0], passed[0] = wall[0] + seconds + stepped_s, passed[0] + seconds
        await deadlines.look()
        approved = (await net.get(f"{request.path}/{(await request.shown())['id']}/approvals"))[1]["approvedBy"]
        return (await request.shown())["status"], approved

    days_s = 4 * 86_400.0
    with structlog.testing.capture_logs() as logs:
        assert await after(5, days_s) == (AWAITING, ["alice"])
        assert await after(590) == (AWAITING, ["alice"])
        assert await after(5, -days_s) == (AWAITING, ["alice"])
    assert [line["event"] for line in logs if line["event"] == "clock-set-forward"] == ["clock-set-forward"]
    assert await after(600) == (AWAITING, ["alice"])
    # One that stays counts.
    await after(5, days_s)
    assert await after(601) == ("Failed", [])


async def test_what_awaited_approvals_before_the_upgrade_is_taken_over(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, upgrade = tmp_path / "coordinator.db", alembic.command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, "c0007"))
        old = CoordinatorStore.open(path)
    jws = sign_request(
        generate_client_key("pay"), "n", "POST", "/v1/keys/k/signatures", b"", now_s=1000, jti=new_jti(), lifetime_s=600
    )
    for number, signed in ((1, jws), (2, jws), (3, "damaged")):
        await old.signatures.accept(accepted(number, jws=signed), "key_1", "Hash", ())
    await old.close()
    with sqlite3.connect(path) as connection:
        connection.execute("update signatures set state = 'AwaitingApprovals' where id in ('sig_1', 'sig_3')")
    store = CoordinatorStore.open(path)
    assert (store.awaiting.of("pay"), store.awaiting.first_s()) == (1, 0)
    assert store.awaiting.due(1600, 9) == ["sig_3", "sig_1"]
    await store.close()


async def test_batches_and_signatures_share_the_places_of_a_client_and_one_deadline(net: FakeNetwork) -> None:
    key_id = await make_key(net)
    single, batch, third = Named(net, key_id, "one"), Request(net, key_id, batch=True), Request(net, key_id, batch=True)
    third.body = third.body.replace(b"batch-1", b"batch-2")
    for each in (single, batch):
        assert (await each.ask())["status"] == AWAITING
    jws = net.files.signer.request(third.path, third.body, exp=int(time.time()) + HOURS_S).jws
    status, told = await net.post(third.path, third.body, jws=jws)
    assert (status, told["code"]) == (429, "too-many-awaiting"), told
    assert (await net.get("/v1/coordinator"))[1]["awaitingApprovals"] == 2
    await net.coordinator.deadlines.end_late(time.time() + HOURS_S + 60)
    for each in (single, batch):
        shown = await each.shown()
        assert (shown["status"], shown["reason"]["code"]) == ("Failed", "approvals/late")
    assert (await third.ask())["status"] == AWAITING


async def test_approvals_of_before_the_upgrade_expire_as_they_say(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, upgrade = tmp_path / "coordinator.db", alembic.command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, "c0008"))
        await CoordinatorStore.open(path).close()
    jws = sign_request(generate_client_key("bob"), "n", "APPROVE", "/p", b"", now_s=1000, jti=new_jti(), lifetime_s=600)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("insert into approvals values ('sig_1', ?, ?)", [("bob", jws), ("carol", "damaged")])
    store = CoordinatorStore.open(path)
    assert [(one.approver, one.jws, one.expires_s) for one in store.approvals.of("sig_1")] == [
        ("bob", jws, 1600), ("carol", "damaged", 0),
    ]  # fmt: skip
    assert [await store.approvals.forget_expired(1599, most) for most in (1, 1)] == [1, 0]
    assert [one.approver for one in store.approvals.of("sig_1")] == ["bob"]
    await store.close()
