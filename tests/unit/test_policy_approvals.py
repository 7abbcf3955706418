"""Rules that ask for approvals, and who may stop a signer: what the model takes, what `decide` says."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from policies.approvals import Approvals
from policies.clients import Algorithm, Client
from policies.counters import Counters
from policies.decide import AskGate, Refuse, decide
from policies.facts import Request
from policies.model import Action, Kind, Policy, Rule
from policies.operators import Operators

NAMES = ("pay", "alice", "bob", "carol")


def client(name: str, byte: int) -> Client:
    return Client(name, Algorithm.ED25519, base64.urlsafe_b64encode(bytes([byte]) * 32).rstrip(b"=").decode())


CLIENTS = tuple(client(name, number) for number, name in enumerate(NAMES, 1))
SIGN = Request("pay", Action.SIGN, "x", Kind.ETHEREUM_TRANSACTION)
TWO_OF_THREE = Approvals(of=("alice", "bob", "carol"), at_least=2)


def rule(approvals: Approvals | None, **changes: Any) -> Rule:
    fields: dict[str, Any] = {"name": "r", "clients": ("pay",), "actions": (Action.SIGN,), "labels": ("x",)}
    return Rule(**(fields | {"kinds": (Kind.ETHEREUM_TRANSACTION,), "approvals": approvals} | changes))


def ask(chosen: Rule, *approvers: str, requester: str = "pay", lifetime_s: int = 300) -> object:
    asked = msgspec.structs.replace(SIGN, client_id=requester, approvers=frozenset(approvers), lifetime_s=lifetime_s)
    return decide(Policy(1, CLIENTS, (chosen,)), asked, Counters(), 0)


def test_enough_approvers_and_not_fewer() -> None:
    assert ask(rule(TWO_OF_THREE), "alice", "carol") == AskGate("r")
    assert ask(rule(TWO_OF_THREE), "alice", "bob", "carol") == AskGate("r")
    assert ask(rule(TWO_OF_THREE), "bob") == Refuse(
        "policy/approvals", "2 approvals are needed, 1 given by bob; may approve: alice, carol"
    )
    assert ask(rule(TWO_OF_THREE)) == Refuse(
        "policy/approvals", "2 approvals are needed, 0 given; may approve: alice, bob, carol"
    )


def test_whom_the_rule_does_not_name_does_not_count() -> None:
    two = Approvals(of=("alice", "bob"), at_least=2)
    assert ask(rule(two), "alice", "carol") == Refuse(
        "policy/approvals", "2 approvals are needed, 1 given by alice; may approve: bob"
    )


def test_nobody_approves_its_own_request_unless_the_policy_says_so() -> None:
    """Also where it signs an approval of its own."""
    strict = rule(TWO_OF_THREE, clients=("alice",))
    assert ask(strict, "alice", "bob", requester="alice") == Refuse(
        "policy/approvals", "2 approvals are needed, 1 given by bob; may approve: carol"
    )
    lax = rule(msgspec.structs.replace(TWO_OF_THREE, requester_counts=True), clients=("alice",))
    assert ask(lax, "bob", requester="alice") == AskGate("r")
    assert ask(lax, "alice", requester="alice") == Refuse(
        "policy/approvals", "2 approvals are needed, 1 given by alice; may approve: bob, carol"
    )


def test_requester_counts_makes_nobody_an_approver_who_is_not_listed() -> None:
    lax = rule(msgspec.structs.replace(TWO_OF_THREE, requester_counts=True))
    assert isinstance(ask(lax, "bob"), Refuse)


def test_only_a_rule_with_approvals_permits_what_was_signed_for_long() -> None:
    assert ask(rule(None), lifetime_s=300) == AskGate("r")
    assert ask(rule(None), lifetime_s=301) == Refuse(
        "policy/approvals", "signed for 301 s, and at most 300 s are permitted"
    )
    one_hour = msgspec.structs.replace(TWO_OF_THREE, within_h=1)
    assert ask(rule(one_hour), "alice", "bob", lifetime_s=3600) == AskGate("r")
    assert ask(rule(one_hour), "alice", "bob", lifetime_s=3601) == Refuse(
        "policy/approvals", "signed for 3601 s, and at most 3600 s are permitted"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"of": ("alice", "alice"), "at_least": 1}, "names a client twice"),
        ({"of": ("alice", "bob"), "at_least": 3}, "can never be"),
    ],
)
def test_approvals_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Approvals(**fields)


def test_a_rule_whose_requester_could_never_have_enough_is_refused() -> None:
    both = Approvals(of=("alice", "bob"), at_least=2)
    with pytest.raises(ValueError, match="alice could never have enough approvals"):
        rule(both, clients=("pay", "alice"))


def test_approvals_are_for_signing() -> None:
    with pytest.raises(ValueError, match="which are for signing"):
        rule(TWO_OF_THREE, actions=(Action.SIGN, Action.CREATE_KEY))


def test_an_approver_must_be_a_client() -> None:
    with pytest.raises(ValueError, match="names the client `mallory`, which is not listed"):
        Policy(1, CLIENTS, (rule(Approvals(of=("alice", "mallory"), at_least=1)),))


def test_one_key_is_not_two_people() -> None:
    twin = msgspec.structs.replace(CLIENTS[1], id="twin")
    with pytest.raises(ValueError, match="two clients or operators have the same key"):
        Policy(1, (*CLIENTS, twin), ())
    with pytest.raises(ValueError, match="two clients or operators have the same key"):
        Policy(1, CLIENTS, (), operators=Operators(keys=(twin,)))
    with pytest.raises(ValueError, match="two have the same key"):
        Operators(keys=(CLIENTS[1], twin))
    with pytest.raises(ValueError, match="two have the same id"):
        Operators(keys=(CLIENTS[1], msgspec.structs.replace(CLIENTS[2], id="alice")))


def test_more_operators_to_unfreeze_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="of 1 can never be"):
        Operators(keys=(CLIENTS[1],), unfreeze=2)


def test_approvals_and_operators_are_in_the_digest() -> None:
    plain = Policy(1, CLIENTS, (rule(None),))
    approved = Policy(1, CLIENTS, (rule(TWO_OF_THREE),))
    stoppable = Policy(1, CLIENTS, (rule(None),), operators=Operators(keys=(client("ops", 9),)))
    assert len({plain.digest(), approved.digest(), stoppable.digest()}) == 3
