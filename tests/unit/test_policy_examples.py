"""The worked policies, each with its table of requests; the schema that editors get; policies written before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from enclave.payloads import keccak256
from policies.decide import Allow, AskGate
from policies.explain import Explanation, decide_all
from policies.facts import Situation
from policies.keccak import keccak256 as plain_keccak256
from policies.load import find_wrong, load_policy, load_yaml
from policies.model import Policy
from policies.schema import policy_schema
from policies.tables import Table
from policies.trial import run_table

FOLDER = Path(__file__).parents[2] / "policies"
TABLES = sorted(FOLDER.glob("*.table.yaml"))
WORKED = [path.with_name(path.name.replace(".table.yaml", ".yaml")) for path in TABLES]
SCHEMA = FOLDER / "policy.schema.json"


def test_every_worked_policy_has_a_table() -> None:
    assert sorted([*TABLES, *WORKED]) == sorted(FOLDER.glob("*.yaml"))
    assert [path.stem for path in WORKED] == [
        "contract-deployment-freeze",
        "exchange-hot-wallet",
        "payouts-allow-list",
        "testnet",
        "treasury-four-eyes",
    ]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_a_worked_policy_decides_as_its_table_says(path: Path) -> None:
    table = load_yaml(path, Table)
    trial = run_table(load_policy(path.parent / table.policy), table, keccak256)
    assert trial.failed == ()
    assert trial.untried == ()
    assert sum(case.refused_by is not None for case in table.cases) >= 5
    # With the plain Keccak of the tools, and again: the same.
    assert run_table(load_policy(path.parent / table.policy), table, plain_keccak256) == trial


def test_a_case_that_is_decided_otherwise_is_seen() -> None:
    path = FOLDER / "testnet.table.yaml"
    table = load_yaml(path, Table)
    policy = load_policy(FOLDER / table.policy)
    without = msgspec.structs.replace(policy, rules=policy.rules[1:])
    swapped = [
        msgspec.structs.replace(case, permitted_by=None, refused_by="policy/fee") if case.permitted_by else case
        for case in table.cases
    ]
    failed = run_table(without, msgspec.structs.replace(table, cases=tuple(swapped)), keccak256)
    assert [outcome.got for outcome in failed.failed][:3] == ["policy/action", "policy/action", "transactions"]
    assert failed.untried == ("transactions", "hashes")


def test_the_schema_is_the_committed_one() -> None:
    assert SCHEMA.read_text() == policy_schema(), "run `keymoot policy schema > policies/policy.schema.json`"


@pytest.mark.parametrize("path", WORKED, ids=lambda path: path.name)
def test_the_schema_takes_what_an_enclave_takes(path: Path) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    validator.validate(document)
    for change in ({"version": 2}, {"colour": "red"}, {"rules": [{"name": "r"}]}):
        assert list(validator.iter_errors({**document, **change}))


# What was published with the first version, as it was written then.
FIRST = """
version: 1
clients:
  - id: wallet
    alg: Ed25519
    public_key: aSUaQXhFGjGDt4c4VI9Q5QXvWuszqVxm7vELu0ldjSA
  - id: payments
    alg: ES256
    public_key: BGhqlJtX71Zdx5trZ0cs0DcA5KX/UgI/D1p0d0lVgFCqg5bRsFhl4NIog+UjyhYOZ9XGaGeyntzCieb2DGZmIEI=
rules:
  - name: make-deposit-keys
    clients: [wallet]
    actions: [create-key]
    labels: [deposits/**]
  - name: sweep-deposits
    clients: [wallet]
    actions: [sign]
    labels: [deposits/**]
    kinds: [BitcoinBip143Preimage, EthereumTransaction]
    derivation_paths: [m/0/*]
  - name: sandbox-hashes
    clients: [payments]
    actions: [sign]
    labels: [sandbox/*]
    kinds: [Hash]
    blind: true
"""
CASES = """
version: 1
policy: unused
cases:
  - {name: 1, client: wallet, label: deposits/a/b, create_key: true, permitted_by: make-deposit-keys}
  - {name: 2, client: wallet, label: deposits/a, path: [0, 1], ethereum: {chain: 5}, permitted_by: sweep-deposits}
  - {name: 3, client: wallet, label: deposits/a, path: [0, 1], bitcoin: {amount: 1}, permitted_by: sweep-deposits}
  - {name: 4, client: wallet, label: deposits/a, bitcoin: {amount: 1}, refused_by: policy/derivation-path}
"""


def test_policies_of_before_say_what_they_said(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(FIRST)
    (tmp_path / "table.yaml").write_text(CASES.replace("name: ", "name: n"))
    assert find_wrong(FIRST, Policy) == []
    trial = run_table(load_policy(tmp_path / "policy.yaml"), load_yaml(tmp_path / "table.yaml", Table), keccak256)
    assert trial.failed == ()


def test_an_explanation_agrees_with_the_decision() -> None:
    """For every case of every table: what permits is the first rule that misses nothing, if there is one."""
    from policies.counters import Counters
    from policies.errors import Refused
    from policies.reading import Asker, read_body

    seen = 0
    for path in TABLES:
        table = load_yaml(path, Table)
        policy = load_policy(path.parent / table.policy)
        for case in table.cases:
            try:
                asker = Asker(case.client, case.label, frozenset(case.approvers))
                requests = read_body(case.request_body(), asker, keccak256)
            except Refused:
                continue
            for found in decide_all(tuple(Situation(policy, one, Counters(case.used), 0) for one in requests)):
                seen += 1
                assert_agrees(found)
    assert seen > 70


def assert_agrees(found: Explanation) -> None:
    permitting = [reading.rule for reading in found.rules if not reading.missed]
    if isinstance(found.decision, Allow | AskGate):
        assert permitting[0] == found.decision.rule
    else:
        assert permitting == []
        assert found.decision.rule in {missed.check for reading in found.rules for missed in reading.missed}
