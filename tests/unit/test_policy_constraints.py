"""Rules over what payloads say: what each refuses, by which code, and what a policy file may not say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from enclave.payloads import decode_payload
from policies.counters import Counters
from policies.decide import AskGate, Refuse, decide
from policies.errors import CallerError
from policies.facts import Request, Situation
from policies.load import find_wrong, parse_yaml
from policies.methods import check_method
from policies.model import Action, Kind, Policy
from policies.requests import (
    BitcoinBip143Preimage,
    Eip712TypedData,
    EthereumTransaction,
    Hash,
    Message,
    MessageHash,
    SigningBody,
    TypedData,
)
from policies.rules import CHECKS, OF_PAYLOADS
from tests.fakes.payloads import TO, encoded_transaction, legacy_transaction, preimage
from tests.fakes.typed_data import ether_mail

HEAD = """version: 1
clients: [{id: a, alg: Ed25519, public_key: D9N68QU1RanlzPzIOty0YP4STv-oi43I7x6lrXyyjtE}]
addresses:
  suppliers: ["0xd8dA6BF26964aF9D7eEd9e03E53415D37aA96045"]
  usdc: ["0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"]
rules:
  - name: r
    clients: [a]
    actions: [sign]
    labels: [hot/*]
"""
USDC = bytes.fromhex("a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48")
OTHER = bytes.fromhex("11" * 20)
MONDAY_NOON_S = 1_767_614_400  # 2026-01-05T12:00:00Z
PAYMENTS = """
    kinds: [EthereumTransaction]
    ethereum: {chains: [1, 10], to: [suppliers], methods: [none], max_value: 1.5 ether, max_fee: 0.00063 ether}
"""
TOKENS = """
    kinds: [EthereumTransaction]
    ethereum:
      chains: [1]
      to: [usdc]
      methods: ["transfer(address,uint256)", "transferFrom(address,address,uint256)", "0x095ea7b3"]
      max_value: 0
      erc20: {recipients: [suppliers], senders: ["0x1111111111111111111111111111111111111111"],
              decimals: 6, max_amount: 2500.50 tokens}
"""
MOST = 2_500_500_000


def policy(rest: str) -> Policy:
    return parse_yaml(HEAD + rest, Policy, "p.yaml")


def ask(chosen: Policy, body: SigningBody, now_s: int = MONDAY_NOON_S) -> str:
    """`` where the gate is asked, else the code of the refusal."""
    payload = decode_payload(body)
    request = Request("a", Action.SIGN, "hot/1", payload.kind, payload.blind, (), payload.decoded)
    decision = decide(chosen, request, Counters(), now_s)
    assert decision == decide(chosen, request, Counters(), now_s)
    if isinstance(decision, Refuse):
        return decision.rule
    assert decision == AskGate("r")
    return ""


def transaction(**changes: Any) -> EthereumTransaction:
    """`chain`, `fee` (a gas), `gas`, `to`, `value`, `data` of an EIP-1559 transaction."""
    places = {"chain": 0, "fee": 3, "gas": 4, "to": 5, "value": 6, "data": 7}
    return EthereumTransaction("0x" + encoded_transaction({places[k]: v for k, v in changes.items()}).hex(), "e")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, ""),
        ({"chain": 10}, ""),
        ({"chain": 5}, "policy/chain"),
        ({"to": OTHER}, "policy/destination"),
        ({"to": b""}, "policy/destination"),
        ({"to": b"", "data": b"\x60\x80\x60\x40"}, "policy/destination"),
        ({"data": b"\0"}, "policy/method"),
        ({"data": bytes.fromhex("a9059cbb")}, "policy/method"),
        ({"value": 15 * 10**17 + 1}, "policy/value"),
        ({"fee": 3 * 10**10 + 1}, "policy/fee"),
        ({"gas": 21_001}, "policy/fee"),
    ],
)
def test_payments(changes: dict[str, Any], code: str) -> None:
    assert ask(policy(PAYMENTS), transaction(**changes)) == code


def test_a_legacy_transaction_is_limited_as_well() -> None:
    chosen = policy(PAYMENTS)
    assert ask(chosen, EthereumTransaction("0x" + legacy_transaction().hex(), "e")) == ""
    assert ask(chosen, EthereumTransaction("0x" + legacy_transaction({1: 3 * 10**10 + 1}).hex(), "e")) == "policy/fee"


def word(value: int | bytes) -> bytes:
    return value.to_bytes(32, "big") if isinstance(value, int) else value.rjust(32, b"\0")


TRANSFER, TRANSFER_FROM, APPROVE = (bytes.fromhex(text) for text in ("a9059cbb", "23b872dd", "095ea7b3"))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (TRANSFER + word(TO) + word(MOST), ""),
        (APPROVE + word(TO) + word(MOST), ""),
        (TRANSFER_FROM + word(OTHER) + word(TO) + word(MOST), ""),
        (TRANSFER + word(TO) + word(MOST + 1), "policy/token"),
        (APPROVE + word(TO) + word(2**256 - 1), "policy/token"),
        (TRANSFER + word(OTHER) + word(1), "policy/token"),
        (TRANSFER_FROM + word(TO) + word(TO) + word(1), "policy/token"),
        (TRANSFER_FROM + word(OTHER) + word(OTHER) + word(1), "policy/token"),
        (TRANSFER + word(TO) + word(1) + b"\0", "policy/token"),
        (TRANSFER + word(TO) + word(1) + bytes(32), "policy/token"),
        (TRANSFER + word(TO) + word(1)[:-1], "policy/token"),
        (TRANSFER + word(TO), "policy/token"),
        (TRANSFER, "policy/token"),
        (TRANSFER + b"\1" + word(TO)[1:] + word(1), "policy/token"),
        (TRANSFER + TO.ljust(32, b"\0") + word(1), "policy/token"),
        (TRANSFER[:3], "policy/method"),
        (b"", "policy/method"),
        (bytes.fromhex("39509351") + word(TO) + word(1), "policy/method"),  # increaseAllowance
    ],
)
def test_tokens(data: bytes, code: str) -> None:
    assert ask(policy(TOKENS), transaction(to=USDC, value=0, data=data)) == code


def test_ether_sent_along_with_tokens_is_limited_by_itself() -> None:
    data = TRANSFER + word(TO) + word(1)
    assert ask(policy(TOKENS), transaction(to=USDC, value=1, data=data)) == "policy/value"
    assert ask(policy(TOKENS), transaction(to=TO, value=0, data=data)) == "policy/destination"


def test_methods_without_erc20_do_not_look_into_arguments() -> None:
    chosen = policy("    kinds: [EthereumTransaction]\n    ethereum: {chains: [1], to: [any], methods: ['0xa9059cbb']}")
    assert ask(chosen, transaction(data=TRANSFER + b"\1")) == ""
    assert ask(chosen, transaction(data=APPROVE)) == "policy/method"
    assert ask(chosen, transaction(data=b"")) == "policy/method"
    assert ask(chosen, transaction(to=b"", data=TRANSFER)) == "policy/destination"


def test_only_new_contracts() -> None:
    chosen = policy("    kinds: [EthereumTransaction]\n    ethereum: {chains: [1], to: [new-contract], methods: []}")
    assert ask(chosen, transaction(to=b"", value=0, data=b"\x60\x80")) == ""
    assert ask(chosen, transaction(data=b"\x60\x80\x60\x40")) == "policy/destination"


def test_typed_data() -> None:
    chosen = policy("""
    kinds: [Eip712TypedData]
    typed_data:
      chains: [1]
      verifying_contracts: ["0xCcCCccccCCCCcCCCCCCcCcCccCcCCCcCcccccccC"]
      primary_types: [Mail]
""")

    def mail(*path: str, value: Any = None) -> Eip712TypedData:
        return Eip712TypedData(msgspec.convert(ether_mail(*path, value=value), TypedData), "e")

    assert ask(chosen, mail("domain", "chainId", value=1)) == ""
    assert ask(chosen, mail("domain", "chainId", value=2)) == "policy/chain"
    assert ask(chosen, mail("domain", "verifyingContract", value="0x" + "11" * 20)) == "policy/destination"


def test_typed_data_of_another_type() -> None:
    chosen = policy("""
    kinds: [Eip712TypedData]
    typed_data: {chains: [1], verifying_contracts: [any], primary_types: [Permit]}
""")
    body = Eip712TypedData(msgspec.convert(ether_mail("domain", "chainId", value=1), TypedData), "e")
    assert ask(chosen, body) == "policy/primary-type"


def test_bitcoin() -> None:
    chosen = policy("    kinds: [BitcoinBip143Preimage]\n    bitcoin: {sighash_types: [ALL], max_amount: 6 BTC}")

    def spend(**changes: Any) -> BitcoinBip143Preimage:
        return BitcoinBip143Preimage("0x" + preimage(**changes).hex(), "e")

    assert ask(chosen, spend()) == ""
    assert ask(chosen, spend(amount=600_000_001)) == "policy/value"
    assert ask(chosen, spend(kind=0x81, prevouts=bytes(32), sequences=bytes(32))) == "policy/sighash"


def test_messages() -> None:
    chosen = policy("    kinds: [Message]\n    message: {hashes: [EIP-191]}")
    assert ask(chosen, Message("0x00", MessageHash.EIP_191, "e")) == ""
    assert ask(chosen, Message("0x00", MessageHash.SHA_256, "e")) == "policy/message-hash"


def test_what_is_not_decoded_fits_no_constraint() -> None:
    chosen = policy(PAYMENTS)
    undecoded = Request("a", Action.SIGN, "hot/1", Kind.ETHEREUM_TRANSACTION)
    for request in (undecoded, Request("a", Action.SIGN, "hot/1", Kind.ETHEREUM_TRANSACTION, blind=True)):
        decision = decide(chosen, request, Counters(), 0)
        assert isinstance(decision, Refuse)
        assert decision.rule in ("policy/payload", "policy/blind")
    assert ask(chosen, Hash("0x" + "11" * 32, "e")) == "policy/kind"


def test_payloads_are_nothing_to_a_rule_that_constrains_none() -> None:
    """These checks are left out of what decides by such a rule."""
    chosen = policy("    kinds: [Message, EthereumTransaction, Eip712TypedData, BitcoinBip143Preimage]")
    checks = [check for name, check in CHECKS if name in OF_PAYLOADS]
    assert len(checks) == len(OF_PAYLOADS)
    bodies = (
        transaction(),
        transaction(to=b"", data=b"abc"),
        BitcoinBip143Preimage("0x" + preimage().hex(), "e"),
        Eip712TypedData(msgspec.convert(ether_mail(), TypedData), "e"),
        Message("0x00", MessageHash.SHA_256, "e"),
        Hash("0x" + "11" * 32, "e"),
    )
    for payload in map(decode_payload, bodies):
        request = Request("a", Action.SIGN, "hot/1", payload.kind, payload.blind, (), payload.decoded)
        situation = Situation(chosen, request, Counters(), 0)
        assert [check(chosen.rules[0], situation) for check in checks] == [""] * len(checks)


HOURS = """
    kinds: [Hash]
    blind: true
    hours:
      - {days: [mon, tue, wed, thu, fri], from: 08:00, until: "18:00"}
      - {days: [fri], from: "22:00", until: "06:30"}
      - {days: [sun], from: "23:00", until: "24:00"}
"""
HOUR_S, DAY_S = 3600, 24 * 3600
MONDAY_S = MONDAY_NOON_S - 12 * HOUR_S


@pytest.mark.parametrize(
    ("now_s", "open_"),
    [
        (MONDAY_S + 8 * HOUR_S, True),
        (MONDAY_S + 8 * HOUR_S - 1, False),
        (MONDAY_S + 18 * HOUR_S - 1, True),
        (MONDAY_S + 18 * HOUR_S, False),
        (MONDAY_S + 4 * DAY_S + 22 * HOUR_S, True),  # Friday night
        (MONDAY_S + 5 * DAY_S, True),
        (MONDAY_S + 5 * DAY_S + 6 * HOUR_S + 1799, True),
        (MONDAY_S + 5 * DAY_S + 6 * HOUR_S + 1800, False),
        (MONDAY_S + 5 * DAY_S + 23 * HOUR_S, False),
        (MONDAY_S + 3 * DAY_S + 23 * HOUR_S, False),
        (MONDAY_S + 7 * DAY_S - 1, True),
        (MONDAY_S + 7 * DAY_S, False),
    ],
)
def test_hours(now_s: int, open_: bool) -> None:
    assert ask(policy(HOURS), Hash("0x" + "11" * 32, "e"), now_s) == ("" if open_ else "policy/hours")


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (PAYMENTS.replace("suppliers", "supplier"), "13:38: no list under `addresses` has the name `supplier`"),
        (PAYMENTS.replace("1.5 ether", "1.5"), "Expected `int | str | null`, got `float`"),
        (PAYMENTS.replace("1.5 ether", "1.5 eth"), "`1.5 eth` is no amount: write whole wei, or `1.5 gwei`"),
        (PAYMENTS.replace("1.5 ether", "0.1 wei"), "more than the 0 decimals of wei"),
        (PAYMENTS.replace("1.5 ether", "-1"), "Expected `int` >= 0"),
        (PAYMENTS.replace("[1, 10]", "[]"), "Expected `array` of length >= 1"),
        (PAYMENTS.replace("[none]", "[]"), "no `methods` permit no call"),
        (PAYMENTS.replace("[none]", '["transfer(address, uint256)"]'), "no spaces"),
        (PAYMENTS.replace("[none]", '["transfer(address,uint)"]'), "`uint256`, not `uint`"),
        (PAYMENTS.replace("suppliers", "new-contracts"), "has the name `new-contracts`"),
        (PAYMENTS.replace("suppliers", "0x11"), "`0x11` is no address"),
        (
            PAYMENTS.replace("suppliers", "0xD8dA6BF26964aF9D7eEd9e03E53415D37aA96045"),
            "has a wrong checksum (EIP-55)",
        ),
        (
            PAYMENTS.replace("[EthereumTransaction]", "[EthereumTransaction, Message]"),
            "rule r limits other kinds",
        ),
        (PAYMENTS.replace("[EthereumTransaction]", "[Message]"), "does not list the kind EthereumTransaction"),
        (PAYMENTS + "    blind: true\n", "limits what is signed, so it can't be blind"),
        (TOKENS.replace('"0x095ea7b3"', "none"), "with `erc20` the methods are some of"),
        (TOKENS.replace("to: [usdc]", "to: [any]"), "`to` lists the tokens' contracts"),
        (TOKENS.replace("decimals: 6, ", ""), "`2500.50 tokens` is no amount: write whole units"),
        (TOKENS.replace("2500.50", "2500.5000001"), "more than the 6 decimals of tokens"),
        (TOKENS.replace('"transferFrom(address,address,uint256)", ', ""), "`senders` are for `transferFrom`"),
        (HOURS.replace('"18:00"', "08:00"), "are the same"),
        (HOURS.replace('"18:00"', "8:00"), "Expected `str` matching regex"),
        (HOURS.replace("[fri]", "[friday]"), "Invalid enum value 'friday'"),
    ],
)
def test_mistakes_in_files(rest: str, said: str) -> None:
    with pytest.raises(CallerError) as caught:
        policy(rest)
    assert said in str(caught.value)
    assert any(wrong.what in str(caught.value) for wrong in find_wrong(HEAD + rest, Policy))


def test_every_mistake_is_found_with_its_place() -> None:
    text = HEAD.replace("[hot/*]", "hot").replace("D9N6", "D9N") + PAYMENTS.replace("1.5 ether", "x") + "    nmae: y\n"
    assert [(wrong.line, wrong.column) for wrong in find_wrong(text, Policy)] == [(2, 11), (10, 13), (13, 78), (14, 5)]
    assert find_wrong(HEAD + PAYMENTS, Policy) == []
    twice = (HEAD + PAYMENTS).replace("[hot/*]", '["?", hot, "b c"]').replace("[a]", "[b, a, c]")
    assert [(wrong.line, wrong.column) for wrong in find_wrong(twice, Policy)] == [(10, 14), (10, 24)]
    unlisted = (HEAD + PAYMENTS).replace("[suppliers]", "[nobody, any, noone]").replace("[a]", "[b, a, c]")
    assert [(wrong.line, wrong.column) for wrong in find_wrong(unlisted, Policy)] == [
        *((8, 15), (8, 21), (13, 38), (13, 51)),
    ]
    assert [wrong[:2] for wrong in find_wrong("version: 1\nversion: 1\n", Policy)] == [(2, 1)]


@pytest.mark.parametrize(
    ("method", "good"),
    [
        ("f()", True),
        ("f(uint256)", True),
        ("f(uint256,(address,bytes32[])[2],string)", True),
        ("$_f1(uint8[][3])", True),
        ("f", False),
        ("f(", False),
        ("f)", False),
        ("f()()", False),
        ("f(uint256)[]", False),
        ("f(,)", False),
        ("f(uint256,)", False),
        ("f(uint7)", False),
        ("f(bytes33)", False),
        ("f(uint256)x", False),
        ("f((uint256)", False),
        ("f(uint256))", False),
        ("1f()", False),
        ("0xA9059CBB", False),
        ("0xa9059c", False),
    ],
)
def test_methods_as_they_are_written(method: str, good: bool) -> None:
    if good:
        check_method(method)
        return
    with pytest.raises(ValueError, match="is no method"):
        check_method(method)
