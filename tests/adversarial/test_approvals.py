"""Approvals against a hostile coordinator and hostile clients: made up, moved to another request, doubled, revoked."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest

from enclave import attempts, deciding, lacking, request_book, wire
from enclave.asked import understand
from enclave.errors import Refused
from policies.hours import Day, Hours
from policies.model import Policy
from policies.requests import Hash, signatures_path
from tests.adversarial.conftest import COMMITTEE, Desk
from tests.adversarial.test_freezes import held_gate, let_go, refused
from tests.adversarial.test_signing import finish, only, refusals, remaining
from tests.fakes.clients import TestClient, approved_policy, open_policy
from tests.fakes.enclaves import authorizations_of

H = hashlib.sha256(b"one").digest()
LACKS = {"policy/approvals"}


class Treasury:
    """A desk whose key needs two approvals of alice, bob and carol."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.net = desk, desk.net
        clock = desk.net.clock
        self.approvers = {name: TestClient(clock, name) for name in ("alice", "bob", "carol")}
        self.use(self.policy())

    def policy(self, *without: str, **changes: Any) -> Policy:
        clients = [client for name, client in self.approvers.items() if name not in without]
        return approved_policy(self.desk.client, *clients, **changes)

    def use(self, policy: Policy) -> None:
        for j in COMMITTEE:
            self.net.policies[j] = policy
            self.net.members[j].core.reload.run()
            assert self.net.members[j].core.status().policy.trouble == ""

    def request(self, lifetime_s: int = 7200, external_id: str = "one") -> wire.ClientRequest:
        now_s = int(self.net.clock())
        body = Hash("0x" + H.hex(), external_id, ())
        return self.desk.client.request(signatures_path(self.desk.key_id), body, iat=now_s, exp=now_s + lifetime_s)

    def approval(
        self, name: str, request: wire.ClientRequest, /, lifetime_s: int = 3600, body: bytes = b"", **header: Any
    ) -> str:
        approved = msgspec.structs.replace(request, body=body or request.body)
        header = {"exp": int(self.net.clock()) + lifetime_s, **header}
        return self.approvers[name].approval(approved, **header)

    def ask(self, request: wire.ClientRequest, *approvals: str, number: int = 1) -> dict[int, list[Any]]:
        with_them = msgspec.structs.replace(request, approvals=approvals)
        return self.net.authorise(with_them, self.desk.key_id, COMMITTEE, self.desk.name(number))


@pytest.fixture
def treasury(desk: Desk) -> Treasury:
    return Treasury(desk)


def test_two_approvals_sign_and_fewer_cost_nothing(treasury: Treasury) -> None:
    request = treasury.request()
    alice, bob = treasury.approval("alice", request), treasury.approval("bob", request)
    assert refused(treasury.ask(request)) == (
        "policy/approvals", "2 approvals are needed, 0 given; may approve: alice, bob, carol",
    )  # fmt: skip
    treasury.net.advance(3000)
    assert refusals(treasury.ask(request, bob)) == LACKS
    assert remaining(treasury.desk) == [8, 8, 8]
    finish(treasury.desk, authorizations_of(treasury.ask(request, alice, bob)))


def test_the_audit_chain_names_the_approvers(treasury: Treasury) -> None:
    request = treasury.request()
    only(treasury.ask(request, *(treasury.approval(name, request) for name in ("bob", "carol"))), wire.Authorized)
    (told,) = [entry.body for entry in treasury.net.members[1].audit if b'"authorized"' in entry.body]
    assert msgspec.json.decode(told)["approvers"] == "bob, carol"


@pytest.mark.parametrize(
    "changes",
    [
        {"body": b"{}"},
        {"path": "/v1/keys/key_00000000000000000000000000000000/signatures"},
        {"network": "mainnet"},
        {"method": "POST", "lifetime_s": 300},
        {"lifetime_s": 72 * 3600 + 1},
        {"lifetime_s": 0},
        {"iat": 4_000_000_000, "exp": 4_000_000_001},
        {"kid": "carol"},
        {"kid": "mallory"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_an_approval_counts_for_its_request_alone(treasury: Treasury, changes: dict[str, Any]) -> None:
    request = treasury.request()
    alice = treasury.approval("alice", request)
    assert refusals(treasury.ask(request, alice, treasury.approval("bob", request, **changes))) == LACKS


def test_an_approval_of_another_body_is_none(treasury: Treasury) -> None:
    """As the coordinator would have it: the approvals of a harmless request for another one."""
    approved, other = treasury.request(external_id="harmless"), treasury.request()
    moved = [treasury.approval(name, approved) for name in ("alice", "bob")]
    assert refusals(treasury.ask(other, *moved)) == LACKS


def test_doubled_approvals_count_once(treasury: Treasury) -> None:
    request = treasury.request()
    twice = [treasury.approval("alice", request) for _ in range(3)]
    assert refusals(treasury.ask(request, *twice)) == LACKS


def test_an_expired_approval_counts_no_longer(treasury: Treasury) -> None:
    request = treasury.request()
    alice = treasury.approval("alice", request, lifetime_s=60)
    treasury.net.advance(61)
    assert refusals(treasury.ask(request, alice, treasury.approval("bob", request))) == LACKS


def decided(treasury: Treasury, request: wire.ClientRequest, *approvals: str) -> None:
    """Everybody approves the request, and nothing is authorised: nobody knows that presignature."""
    with_them = msgspec.structs.replace(request, approvals=approvals)
    unknown = wire.PresignatureName(b"\1" * 32, 1)
    only(treasury.net.authorise(with_them, treasury.desk.key_id, COMMITTEE, unknown), wire.UnknownPresignature)


@pytest.mark.parametrize("left_s", [1, 0])
def test_what_was_decided_counts_as_long_as_its_approvals(treasury: Treasury, left_s: int) -> None:
    """The coordinator has it decided in time, and asks for shares when the approvals have expired."""
    request = treasury.request()
    alice, bob = (treasury.approval(name, request, lifetime_s=60) for name in ("alice", "bob"))
    decided(treasury, request, alice, bob)
    treasury.net.advance(60 - left_s)
    if left_s:
        finish(treasury.desk, authorizations_of(treasury.ask(request, alice, bob)))
        return
    assert refusals(treasury.ask(request, alice, bob)) == LACKS
    assert remaining(treasury.desk) == [8, 8, 8]
    treasury.net.advance(11)
    again = (treasury.approval(name, request) for name in ("alice", "bob"))
    finish(treasury.desk, authorizations_of(treasury.ask(request, alice, *again)))


def test_an_approval_counts_no_longer_than_a_request_may_wait(treasury: Treasury) -> None:
    """Also for the same body, signed anew, and however long the approver signed for."""
    treasury.use(treasury.policy(within_h=1))
    alice, bob = (treasury.approval(name, treasury.request(), lifetime_s=72 * 3600) for name in ("alice", "bob"))
    treasury.net.advance(3599)
    decided(treasury, treasury.request(3600), alice, bob)
    treasury.net.advance(1)
    assert refusals(treasury.ask(treasury.request(3600), alice, bob)) == LACKS


def test_hours_hold_when_it_is_authorised(treasury: Treasury) -> None:
    """Decided a second before they end, ordered then."""
    now_s = int(treasury.net.clock())
    treasury.net.advance(86_400 - now_s % 86_400 - 1)
    until_midnight = Hours(tuple(Day), "00:01", "24:00")
    policy = open_policy(treasury.desk.client)
    rule = msgspec.structs.replace(policy.rules[0], hours=(until_midnight,))
    treasury.use(msgspec.structs.replace(policy, rules=(rule,)))
    treasury.desk.sid = treasury.net.presign(COMMITTEE, 8)[1].sid
    treasury.net.drain()
    early, late = treasury.request(300, "early"), treasury.request(300, "late")
    decided(treasury, early)
    decided(treasury, late)
    finish(treasury.desk, authorizations_of(treasury.ask(early)))
    treasury.net.advance(1)
    assert refusals(treasury.ask(late, number=2)) == {"policy/hours"}


def test_the_requester_is_no_approver_unless_the_policy_says_so(treasury: Treasury) -> None:
    request = treasury.request()
    payments = treasury.desk.client.approval(request)
    assert refusals(treasury.ask(request, treasury.approval("alice", request), payments)) == LACKS


def test_an_approval_is_no_request(treasury: Treasury) -> None:
    """The policy lets alice sign by herself; her approval of another's request is not hers."""
    request = treasury.request()
    treasury.use(open_policy(treasury.desk.client, *treasury.approvers.values()))
    posing = msgspec.structs.replace(request, jws=treasury.approval("alice", request, lifetime_s=200))
    assert refusals(treasury.ask(posing)) == {"request/path"}


def test_a_revoked_approver_does_not_count(treasury: Treasury) -> None:
    """Also where the gate was being asked when it was revoked."""
    request = treasury.request()
    given = [treasury.approval(name, request) for name in ("alice", "bob")]
    held = held_gate(treasury.desk)
    treasury.ask(request, *given)
    treasury.use(treasury.policy("bob"))
    assert refused(let_go(treasury.desk, held))[0] == "policy/approvals"


def test_who_leaves_approvals_out_is_in_nobodys_way(treasury: Treasury) -> None:
    """However often: to lack approvals is no question to the gate."""
    request = treasury.request()
    alice, bob = treasury.approval("alice", request), treasury.approval("bob", request)
    for _ in range(attempts.MAX_ATTEMPTS + 2):
        for given in ((), (alice,), (bob,)):
            assert refusals(treasury.ask(request, *given)) == LACKS
    finish(treasury.desk, authorizations_of(treasury.ask(request, alice, bob)))


def test_what_lacked_approvals_is_not_understood_again_at_once(
    treasury: Treasury, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a coordinator could have it parsed and decided again and again."""
    understood = []

    def counted(*asked: Any) -> Any:
        understood.append(asked)
        return understand(*asked)

    monkeypatch.setattr(deciding, "understand", counted)
    request = treasury.request()
    alice = treasury.approval("alice", request)
    for given in ((alice,), (), (alice,), (alice, alice)):
        assert refusals(treasury.ask(request, *given)) == LACKS
    assert len(understood) == len(COMMITTEE)
    treasury.net.advance(lacking.AGAIN_AFTER_S)
    for _ in range(2):
        assert refusals(treasury.ask(request, alice)) == LACKS
    assert len(understood) == 2 * len(COMMITTEE)


def test_which_approvals_were_too_few_is_bounded() -> None:
    book = lacking.Lacking()
    for number in range(lacking.MAX_SETS + 1):
        book.keep(frozenset({str(number)}), "too few", 0.0)
    book.check(frozenset({"0"}), 1.0)
    with pytest.raises(Refused, match="too few"):
        book.check(frozenset({"1"}), 1.0)


def test_only_where_the_policy_asks_for_approvals_is_a_request_signed_for_long(treasury: Treasury) -> None:
    assert refusals(treasury.ask(treasury.request(25 * 3600))) == {"request/lifetime"}
    long = treasury.request(7200)
    treasury.use(open_policy(treasury.desk.client))
    assert refusals(treasury.ask(long)) == {"request/lifetime"}


def test_requests_that_wait_are_bounded_for_each_client(treasury: Treasury, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_book, "MAX_WAITING", 2)
    for name in ("one", "two"):
        assert refusals(treasury.ask(treasury.request(external_id=name))) == LACKS
    assert refusals(treasury.ask(treasury.request(external_id="three"))) == {"busy"}
    assert refusals(treasury.ask(treasury.request(300, "short"))) == LACKS
    treasury.net.advance(7200 + 1000)
    assert refusals(treasury.ask(treasury.request(external_id="four"))) == LACKS
