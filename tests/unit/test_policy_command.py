"""`keymoot policy check|explain|test|schema` as a person, a script and a CI call them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.cli.app import app
from policies.errors import CallerError, Refused
from policies.schema import policy_schema
from tests.fakes.payloads import encoded_transaction

FOLDER = Path(__file__).parents[2] / "policies"
RUN = CliRunner()
HOT = str(FOLDER / "exchange-hot-wallet.yaml")


@pytest.fixture
def withdrawal(tmp_path: Path) -> str:
    body = tmp_path / "body.json"
    transaction = "0x" + encoded_transaction().hex()
    body.write_text(json.dumps({"kind": "EthereumTransaction", "transaction": transaction, "externalId": "x"}))
    return str(body)


def test_check_of_a_good_policy() -> None:
    done = RUN.invoke(app, ["policy", "check", HOT])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "is a policy of 2 clients and 6 rules" in done.stdout
    told = json.loads(RUN.invoke(app, ["policy", "check", HOT, "--json"]).stdout)
    assert (told["good"], told["mistakes"], told["warnings"]) == (True, [], [])
    assert told["digest"] in done.stdout


def test_check_tells_what_is_probably_not_meant() -> None:
    done = RUN.invoke(app, ["policy", "check", str(FOLDER / "testnet.yaml")])
    assert done.exit_code == 0
    assert "warning: rule transactions permits every call of every contract" in done.stderr


REFUSED = "rule transactions refuses on first-seen-destination, and permits nothing"


def test_check_tells_of_a_rule_that_nothing_can_pass(tmp_path: Path) -> None:
    path, text = tmp_path / "p.yaml", (FOLDER / "testnet.yaml").read_text()

    def told(reaction: str, others: str = "") -> str:
        react = "    on_anomaly: {first-seen-destination: %s}\n"
        changed = text.replace("  - name: transactions\n", "  - name: transactions\n" + react % reaction)
        hashes = "  - name: hashes\n"
        assert changed != text
        assert hashes in text
        path.write_text(changed.replace(hashes, hashes + (react % others if others else "")))
        done = RUN.invoke(app, ["policy", "check", str(path)])
        assert done.exit_code == 0, done.stderr
        return done.stderr

    assert REFUSED in told("refuse")
    assert REFUSED in told("refuse", "refuse")
    assert [REFUSED in told("refuse", other) for other in ("flag", "ask-gate")] == [False, False]
    assert [REFUSED in told(reaction) for reaction in ("flag", "ask-gate")] == [False, False]


def test_check_of_a_bad_policy_says_where(tmp_path: Path) -> None:
    bad = tmp_path / "p.yaml"
    bad.write_text(
        Path(HOT).read_text().replace("[sweep", "[").replace("chains: [1]", "chains: [0]", 1) + "colour: x\n"
    )
    done = RUN.invoke(app, ["policy", "check", str(bad)])
    assert (done.exit_code, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    line = 1 + bad.read_text().splitlines().index("      chains: [0]")
    assert lines[0].startswith(f"{bad}:{line}:16: Expected `int` >= 1")
    assert lines[1].startswith(f"{bad}:{len(bad.read_text().splitlines())}:1: unknown field `colour`")
    assert lines[2].endswith("2 mistakes. An enclave does not start with it.")
    told = json.loads(RUN.invoke(app, ["policy", "check", str(bad), "--json"]).stdout)
    assert [mistake["line"] for mistake in told["mistakes"]] == [line, len(bad.read_text().splitlines())]


def test_check_of_no_file() -> None:
    done = RUN.invoke(app, ["policy", "check", "/nowhere/policy.yaml"])
    assert isinstance(done.exception, CallerError)


def test_explain_what_is_permitted(withdrawal: str) -> None:
    asked = ["policy", "explain", HOT, "-r", withdrawal, "--client", "withdrawals", "--label", "hot/eth"]
    done = RUN.invoke(app, asked)
    assert done.exit_code == 0
    assert "Permitted by the rule withdraw-ether: the gate is asked." in done.stdout
    assert "  value: 1500000000000000000" in done.stdout
    assert "  sweep-ether: misses\n    policy/client: client withdrawals has no permission" in done.stdout
    told = json.loads(RUN.invoke(app, [*asked, "--json"]).stdout)
    assert told["decision"] == {"permitted_by": "withdraw-ether", "then": "the gate is asked"}
    assert told["decoded"]["chain_id"] == "1"


def test_explain_what_is_refused(withdrawal: str) -> None:
    payouts = str(FOLDER / "payouts-allow-list.yaml")
    asked = ["policy", "explain", payouts, "-r", withdrawal, "--client", "payroll", "--label", "payouts/usdc"]
    done = RUN.invoke(app, [*asked, "--at", "2026-01-04T12:00:00Z", "--json"])
    assert done.exit_code == 4
    told = json.loads(done.stdout)
    assert told["decision"]["refused_by"] == "policy/value"
    assert [missed["check"] for missed in told["rules"][0]["missed"]] == [
        *("policy/destination", "policy/method", "policy/token", "policy/value", "policy/hours"),
    ]
    assert [missed["check"] for missed in told["rules"][1]["missed"]] == ["policy/value"]


def test_explain_what_no_enclave_would_read(tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text('{"kind": "EthereumTransaction", "transaction": "0x02c0", "externalId": "x"}')
    asked = ["policy", "explain", HOT, "-r", str(body), "--client", "withdrawals"]
    assert isinstance(RUN.invoke(app, asked).exception, CallerError)
    refused = RUN.invoke(app, [*asked, "--label", "hot/eth"]).exception
    assert isinstance(refused, Refused)
    assert refused.rule == "payload/ethereum"


def test_explain_for_strangers(withdrawal: str) -> None:
    asked = ["policy", "explain", HOT, "-r", withdrawal, "--label", "hot/eth", "--client"]
    refused = RUN.invoke(app, [*asked, "stranger"]).exception
    assert isinstance(refused, Refused)
    assert refused.rule == "request/client"
    approved = RUN.invoke(app, [*asked, "withdrawals", "--approved-by", "stranger"]).exception
    assert isinstance(approved, CallerError)


def test_explain_shows_a_call_of_a_token(tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    data = bytes.fromhex("a9059cbb") + bytes(12) + b"\x11" * 20 + (7).to_bytes(32, "big")
    usdc = bytes.fromhex("a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48")
    transaction = "0x" + encoded_transaction({5: usdc, 6: 0, 7: data}).hex()
    body.write_text(json.dumps({"kind": "EthereumTransaction", "transaction": transaction, "externalId": "x"}))
    done = RUN.invoke(app, ["policy", "explain", HOT, "-r", str(body), "--client", "withdrawals", "--label", "hot/eth"])
    assert done.exit_code == 0
    recipient = "0x" + "11" * 20
    assert f"  erc20: method transfer(address,uint256), recipient {recipient}, amount 7\n" in done.stdout
    assert "Permitted by the rule withdraw-usdc: the gate is asked." in done.stdout


def test_a_table_that_fails(tmp_path: Path) -> None:
    table = tmp_path / "t.yaml"
    text = (FOLDER / "testnet.table.yaml").read_text().replace("policy: ", f"policy: {FOLDER}/")
    table.write_text(text)
    assert RUN.invoke(app, ["policy", "test", str(table)]).exit_code == 0
    table.write_text(text.replace("permitted_by: hashes", "refused_by: policy/blind"))
    done = RUN.invoke(app, ["policy", "test", str(table)])
    assert done.exit_code == 1
    assert "FAIL  a hash in the sandbox: hashes\n      expected policy/blind\n" in done.stdout
    assert f"{table}: warning: no case is permitted by the rule hashes" in done.stderr
    table.write_text(text.replace("permitted_by: hashes", "permitted_by: hushes"))
    assert "which the policy has not" in str(RUN.invoke(app, ["policy", "test", str(table)]).exception)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("used: {hashes-an-hour 3600s: 599}", "uses `hashes-an-hour 3600s`, which the policy does not count"),
        ("used: {hashes-a-day 86400s label=sandbox/a: 1}", "uses `hashes-a-day 86400s label=sandbox/a`, which"),
        ("used: {~rate 60s label=sandbox/a: 1}", "uses `~rate 60s label=sandbox/a`, which"),
        ('seen: ["1:0xd8dA6BF26964aF9D7eEd9e03E53415D37aA96045"]', "matching regex"),
        ("path: [1]\n    create_key: true", "a new key has no `path`"),
        ("path: [1]\n    body: {derivationPath: [1]}", "a body says its own"),
        ('ethereum: {chain: 1, data: "0x00", erc20: {method: "approve(address,uint256)", recipient: "0x1111111111'
         '111111111111111111111111111111", amount: 1}}', "either `data` or `erc20`"),
    ],
)  # fmt: skip
def test_a_case_that_would_say_nothing_of_what_it_names_is_a_mistake(tmp_path: Path, case: str, said: str) -> None:
    table, asked = tmp_path / "t.yaml", "" if re.search("create_key|body|ethereum", case) else "    create_key: true\n"
    text = f"version: 1\npolicy: {FOLDER}/testnet.yaml\ncases:\n  - name: x\n    client: dev\n    label: sandbox/a\n"
    table.write_text(f"{text}{asked}    refused_by: policy/limits\n    {case}\n")
    assert said in str(RUN.invoke(app, ["policy", "test", str(table)]).exception)


@pytest.mark.parametrize("used", ["hashes-an-hour 3600s label=any/other", "~rate 300s label=x", "~rate 86400s label=x"])
def test_every_counter_of_the_policy_can_be_used(tmp_path: Path, used: str) -> None:
    text = (FOLDER / "testnet.table.yaml").read_text().replace("policy: ", f"policy: {FOLDER}/")
    table = tmp_path / "t.yaml"
    known = "hashes-an-hour 3600s label=sandbox/a: 599"
    assert known in text
    table.write_text(text.replace(known, f"{known}, {used}: 1"))
    done = RUN.invoke(app, ["policy", "test", str(table)])
    assert done.exit_code == 0, done.stdout


def test_a_body_of_a_case_is_signed_with_its_path(tmp_path: Path) -> None:
    text = (FOLDER / "exchange-hot-wallet.table.yaml").read_text().replace("policy: ", f"policy: {FOLDER}/")
    policy = (FOLDER / "exchange-hot-wallet.yaml").read_text()
    hashes = "rules:\n  - {name: h, clients: [wallet], actions: [sign], labels: ['**'], kinds: [Hash], blind: true}\n"
    (tmp_path / "p.yaml").write_text(policy.replace("rules:\n", hashes, 1))
    table = tmp_path / "t.yaml"
    table.write_text(text.replace(f"policy: {FOLDER}/exchange-hot-wallet.yaml", "policy: p.yaml"))
    # All that the new rule misses is that the path is not `m`.
    said = RUN.invoke(app, ["policy", "test", str(table)]).stdout
    assert "FAIL  a bare hash, with a deposit key: policy/derivation-path" in said


def test_the_schema_is_printed() -> None:
    assert RUN.invoke(app, ["policy", "schema"]).stdout == policy_schema()
