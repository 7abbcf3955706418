"""The example policies, and what each refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.counters import Counters
from policies.decide import Allow, AskGate, Decision, Refuse, decide
from policies.facts import Request
from policies.load import load_policy
from policies.model import Action, Kind, Policy

FOLDER = Path(__file__).parents[2] / "policies"
NOW_S = 1_700_000_000


@pytest.fixture(scope="module")
def treasury() -> Policy:
    return load_policy(FOLDER / "ethereum-treasury.yaml")


@pytest.fixture(scope="module")
def deposits() -> Policy:
    return load_policy(FOLDER / "exchange-deposits.yaml")


def create(policy: Policy, client: str, label: str) -> Decision:
    return decide(policy, Request(client, Action.CREATE_KEY, label), Counters(), NOW_S)


def sign(policy: Policy, client: str, label: str, kind: Kind, path: tuple[int, ...] = ()) -> Decision:
    request = Request(client, Action.SIGN, label, kind, kind is Kind.HASH, path)
    return decide(policy, request, Counters(), NOW_S)


def refusal(decision: Decision) -> str:
    assert isinstance(decision, Refuse)
    return decision.rule


def test_every_example_is_listed_here() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.yaml")) == [
        "ethereum-treasury.yaml",
        "exchange-deposits.yaml",
    ]


def test_treasury_permits(treasury: Policy) -> None:
    assert create(treasury, "key-admin", "treasury/hot") == Allow("make-treasury-keys")
    assert sign(treasury, "payments", "treasury/hot", Kind.ETHEREUM_TRANSACTION) == AskGate("send-payments")


def test_treasury_refuses(treasury: Policy) -> None:
    eth = Kind.ETHEREUM_TRANSACTION
    assert refusal(sign(treasury, "payments", "treasury/hot", Kind.HASH)) == "policy/kind"
    assert refusal(sign(treasury, "payments", "treasury/hot", Kind.BITCOIN_BIP143_PREIMAGE)) == "policy/kind"
    assert refusal(sign(treasury, "payments", "treasury/hot", eth, (0,))) == "policy/derivation-path"
    assert refusal(sign(treasury, "payments", "treasury/cold/1", eth)) == "policy/label"
    assert refusal(sign(treasury, "payments", "other/hot", eth)) == "policy/label"
    assert refusal(sign(treasury, "key-admin", "treasury/hot", eth)) == "policy/action"
    assert refusal(sign(treasury, "stranger", "treasury/hot", eth)) == "policy/client"
    assert refusal(create(treasury, "payments", "treasury/hot")) == "policy/action"
    assert refusal(create(treasury, "key-admin", "Treasury/hot")) == "policy/label"


def test_deposits_permits(deposits: Policy) -> None:
    assert create(deposits, "wallet", "deposits/btc/main") == Allow("make-deposit-keys")
    for kind in (Kind.BITCOIN_BIP143_PREIMAGE, Kind.ETHEREUM_TRANSACTION):
        assert sign(deposits, "wallet", "deposits/btc", kind, (0, 77)) == AskGate("sweep-deposits")
    assert sign(deposits, "research", "sandbox/a", Kind.HASH) == AskGate("sandbox-hashes")


def test_deposits_refuses(deposits: Policy) -> None:
    btc = Kind.BITCOIN_BIP143_PREIMAGE
    for path in ((), (0,), (1, 5), (0, 5, 0)):
        assert refusal(sign(deposits, "wallet", "deposits/btc", btc, path)) == "policy/derivation-path"
    assert refusal(sign(deposits, "wallet", "deposits/btc", Kind.HASH, (0, 1))) == "policy/kind"
    assert refusal(sign(deposits, "research", "deposits/btc", Kind.HASH, (0, 1))) == "policy/label"
    assert refusal(sign(deposits, "wallet", "sandbox/a", btc, (0, 1))) == "policy/label"
    assert refusal(sign(deposits, "research", "sandbox/a/b", Kind.HASH)) == "policy/label"
    assert refusal(sign(deposits, "research", "sandbox/a", btc)) == "policy/kind"
    assert refusal(create(deposits, "research", "sandbox/a")) == "policy/action"
