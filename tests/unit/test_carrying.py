"""Which approvals a coordinator carries first, and which are worth another attempt."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator, Callable

import pytest

from appliance.api.jws import generate_client_key, new_jti, sign_request
from appliance.coordinator.carrying import LastRefusals, brings_more, carried
from appliance.store.approvals import ApprovalRow
from enclave import wire
from policies.approvals import Approvals, named_in
from policies.signed_requests import APPROVE, claimed_client
from tests.fakes.coordinator_side import FakeNetwork, FakeSigner
from tests.unit.test_coordinator_approvals import Request, orders
from tests.unit.test_coordinator_requests import check, make_key

NOW_S = 1_000_000
RULE = Approvals(of=("alice", "bob"), at_least=2)


def row(name: str, jti: str = "", now_s: int = NOW_S) -> ApprovalRow:
    jws = sign_request(generate_client_key(name), "n", APPROVE, "/p", b"", now_s=now_s, jti=jti or new_jti())
    return ApprovalRow("sig_1", name, jws, now_s + 120)


def lacks(*approvers: str) -> str:
    return RULE.missing("pay", set(approvers))


def test_who_is_named_in_what_a_signer_lacks() -> None:
    assert named_in(lacks()) == (frozenset(), frozenset({"alice", "bob"}))
    assert named_in(lacks("bob", "mallory")) == (frozenset({"bob"}), frozenset({"alice"}))
    assert named_in("2 approvals are needed, 0 given") == (frozenset(), frozenset())


def test_who_is_named_is_carried_first_and_what_has_expired_not_at_all() -> None:
    useless = [row(f"a{number:02}") for number in range(wire.MAX_APPROVALS + 4)]
    alice, bob, late = row("alice"), row("bob"), row("carl", now_s=NOW_S - 301)
    first = carried([*useless, alice, bob, late], lacks("bob"), NOW_S)
    assert (first[:2], len(first)) == ((alice, bob), wire.MAX_APPROVALS)
    assert carried([alice, late], "", NOW_S) == (alice,)


def test_what_is_worth_another_attempt() -> None:
    mallory, alice = row("mallory"), row("alice")
    assert brings_more((), (mallory,), lacks())
    assert not brings_more((mallory,), (row("mallory"),), lacks())
    assert not brings_more((mallory, alice), (mallory, alice), lacks())
    # Hers did not count, though she may approve: it was signed for too long, say.
    assert brings_more((alice,), (row("alice"),), lacks())
    assert not brings_more((alice,), (row("alice"),), lacks("alice"))


def test_another_policy_is_worth_an_attempt() -> None:
    digests = {2: b"old"}
    refusals = LastRefusals(digests.get, most=2)
    assert refusals.outdated("sig_1")
    refusals.note("sig_1", 2)
    assert not refusals.outdated("sig_1")
    digests[2] = b"new"
    assert refusals.outdated("sig_1")
    refusals.note("sig_1", 2)
    del digests[2]
    assert not refusals.outdated("sig_1")
    for number in (2, 3):
        refusals.note(f"sig_{number}", 1)
    assert refusals.outdated("sig_1")


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    """Its signers want bob's approval; alice's is of no use, and takes the only place."""
    async with FakeNetwork.start(tmp_path) as made, made.all_connected():
        for signer in made.signers:
            signer.answers[wire.SignOrder] = wanting_bob(signer)  # type: ignore[assignment]
        yield made


def wanting_bob(signer: FakeSigner) -> Callable[[wire.SignOrder], list[wire.Wire]]:
    rule = Approvals(of=("bob",), at_least=1)

    def answer(order: wire.SignOrder) -> list[wire.Wire]:
        if missing := rule.missing("payments", {claimed_client(jws) for jws in order.request.approvals}):
            return [wire.RequestRefused(order.ceremony, "policy/approvals", missing)]
        return list(signer.honest(order))

    return answer


async def test_useless_approvals_cost_one_attempt_and_do_not_crowd_out_who_counts(
    net: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_APPROVALS", 1)
    asked = Request(net, await make_key(net))
    shown = await asked.ask()
    assert shown["reason"]["message"] == "1 approvals are needed, 0 given; may approve: bob"
    before = orders(net)
    for _ in range(4):
        status, shown = await asked.approve("alice")
        assert (status, shown["status"]) == (202, "AwaitingApprovals")
    assert orders(net) == before + 1
    status, shown = await asked.approve("bob")
    assert (status, shown["status"]) == (200, "Signed")
    check(net, shown)
    (carried_last,) = net.signers[0].received(wire.SignOrder)[-1].request.approvals  # type: ignore[attr-defined]
    assert claimed_client(carried_last) == "bob"
