"""Limits and anomalies as the policy decides on them, from counters that the test gives."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from policies.clients import Algorithm, Client
from policies.counters import Charge, Count, Counters
from policies.decide import AskGate, Refuse, decide
from policies.decoded import BitcoinDecoded, EthereumDecoded, MessageDecoded
from policies.errors import CallerError
from policies.facts import Request
from policies.limits import Anomaly, Asset, Each, Limit, OnAnomaly, Reaction
from policies.load import parse_yaml
from policies.model import Action, Kind, Policy, Rule
from policies.rules.limits import moved

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
TOKEN, ALICE, BOB = bytes.fromhex("aa" * 20), bytes.fromhex("bb" * 20), bytes.fromhex("cc" * 20)
ETHER = 10**18
HOURLY = Limit(name="hourly", within="1h", signatures=3)


def transaction(to: bytes = ALICE, value: int = 0, data: bytes = b"", chain_id: int = 1) -> EthereumDecoded:
    return EthereumDecoded(
        type=2,
        chain_id=chain_id,
        nonce=0,
        max_priority_fee_per_gas=1,
        max_fee_per_gas=2,
        gas_limit=21_000,
        to=to,
        value=value,
        data=data,
    )


def request(decoded: Any = None, **changes: Any) -> Request:
    fields = {"kind": Kind.ETHEREUM_TRANSACTION, "decoded": decoded or transaction()} | changes
    return Request("a", Action.SIGN, "hot/1", **fields)


def rule(name: str = "r", **changes: Any) -> Rule:
    fields = {
        "clients": ("a",),
        "actions": (Action.SIGN,),
        "labels": ("hot/*",),
        "kinds": (Kind.ETHEREUM_TRANSACTION,),
    }
    return Rule(name=name, **(fields | changes))


def policy(*rules: Rule, limits: tuple[Limit, ...] = ()) -> Policy:
    return Policy(1, (Client("a", Algorithm.ED25519, KEY),), rules, limits)


def ask(chosen: Policy, asked: Request, **known: Any) -> Any:
    return decide(chosen, asked, Counters(**known), 0)


def call(selector: str, *words: bytes | int) -> bytes:
    parts = (word.to_bytes(32, "big") if isinstance(word, int) else word.rjust(32, b"\0") for word in words)
    return bytes.fromhex(selector) + b"".join(parts)


# --- rates ---


@pytest.mark.parametrize(("used", "passes"), [(0, True), (2, True), (3, False), (99, False)])
def test_a_rate_has_room_for_as_many_as_it_says(used: int, passes: bool) -> None:
    decision = ask(policy(rule(limits=(HOURLY,))), request(), used={"hourly 3600s": used})
    if passes:
        assert decision == AskGate("r", Charge((Count("hourly 3600s", 3600, 1, 3),)))
    else:
        assert decision == Refuse("policy/limits", "the limit hourly has room for 0 of 3, not for 1")


def test_a_limit_counts_apart_what_it_says() -> None:
    each = Limit(name="x", within="90s", signatures=1, each=(Each.LABEL, Each.CLIENT))
    decision = ask(policy(rule(limits=(each,))), request())
    assert decision.charge.counts == (Count("x 90s client=a label=hot/1", 90, 1, 1),)


def test_the_whole_batch_counts() -> None:
    decision = ask(policy(rule(limits=(HOURLY,))), request(signatures=4))
    assert decision == Refuse("policy/limits", "the limit hourly has room for 3 of 3, not for 4")
    before = Charge((Count("hourly 3600s", 3600, 2, 3),))
    assert isinstance(decide(policy(rule(limits=(HOURLY,))), request(), Counters(), 0, before), AskGate)
    assert isinstance(decide(policy(rule(limits=(HOURLY,))), request(signatures=2), Counters(), 0, before), Refuse)


def test_the_limits_of_the_policy_hold_for_every_rule() -> None:
    chosen = policy(rule("one", limits=(HOURLY,)), rule("two"), limits=(Limit(name="all", within="1d", signatures=9),))
    # What the first rule has no room for, another rule may permit: rules only permit.
    assert ask(chosen, request(), used={"hourly 3600s": 3}).rule == "two"
    refused = ask(chosen, request(), used={"all 86400s": 9})
    assert refused == Refuse("policy/limits", "the limit all has room for 0 of 9, not for 1")


def test_a_limit_for_some_labels_counts_no_others() -> None:
    some = Limit(name="some", within="1h", signatures=0, labels=("cold/*",))
    assert ask(policy(rule(limits=(some,))), request()) == AskGate("r")


def test_what_is_not_known_is_not_permitted() -> None:
    refused = Refuse("policy/limits", "what was signed before is not known: no disk")
    assert ask(policy(rule(limits=(HOURLY,))), request(), unknown="no disk") == refused
    watching = policy(rule(on_anomaly=OnAnomaly(rate_jump=Reaction.FLAG)))
    assert ask(watching, request(), unknown="no disk") == refused
    assert ask(policy(rule()), request(), unknown="no disk") == AskGate("r")


# --- totals ---

ETH, USD = "eip155:1/native", f"eip155:1/erc20:0x{TOKEN.hex()}"


@pytest.mark.parametrize(
    ("asset", "decoded", "amount"),
    [
        (ETH, transaction(value=5), 5 + 42_000),
        (ETH, transaction(value=5, chain_id=10), 0),
        (USD, transaction(value=5), 0),
        (USD, transaction(TOKEN, data=call("a9059cbb", BOB, 7)), 7),
        (USD, transaction(TOKEN, data=call("23b872dd", ALICE, BOB, 8)), 8),
        (USD, transaction(TOKEN, data=call("095ea7b3", BOB, 2**256 - 1)), 2**256 - 1),
        (USD, transaction(TOKEN, data=call("a9059cbb", BOB, 7), chain_id=10), 0),
        (USD, transaction(ALICE, data=call("a9059cbb", BOB, 7)), 0),
        # What cannot be read: trailing bytes, a word too few, an unknown call, none.
        (USD, transaction(TOKEN, data=call("a9059cbb", BOB, 7) + b"\0"), None),
        (USD, transaction(TOKEN, data=call("a9059cbb", BOB)), None),
        (USD, transaction(TOKEN, data=call("12345678", BOB, 7)), None),
        (USD, transaction(TOKEN), None),
        (USD, transaction(TOKEN, data=call("a9059cbb", b"\1" + BOB, 7)), None),
        (USD, transaction(TOKEN, data=call("39509351", BOB, 9)), None),
        (ETH, MessageDecoded(b"", "EIP-191"), None),
        ("bitcoin", transaction(value=5), 0),
        ("bitcoin", BitcoinDecoded(2, b"", b"", b"", 0, b"", 1234, 0, b"", 0, 1), 1234),
        (ETH, BitcoinDecoded(2, b"", b"", b"", 0, b"", 1234, 0, b"", 0, 1), 0),
    ],
)
def test_how_much_moves(asset: str, decoded: Any, amount: int | None) -> None:
    assert moved(Asset.parse(asset), request(decoded)) == amount


def test_nothing_is_read_of_a_blind_hash() -> None:
    assert moved(Asset.parse(ETH), Request("a", Action.SIGN, "hot/1", Kind.HASH, blind=True)) is None


def test_a_total_has_room_for_as_much_as_it_says() -> None:
    daily = Limit(name="daily", within="24h", total=str(2 * ETHER), asset=ETH, each=(Each.LABEL,))
    key, fee = "daily 86400s label=hot/1", 42_000
    chosen = policy(rule(limits=(daily,)))
    exact = request(transaction(value=ETHER - fee))
    assert ask(chosen, exact, used={key: ETHER}).charge.counts == (Count(key, 86_400, ETHER, 2 * ETHER),)
    refused = ask(chosen, exact, used={key: ETHER + 1})
    assert refused == Refuse(
        "policy/limits", f"the limit daily has room for {ETHER - 1} of {2 * ETHER}, not for {ETHER}"
    )
    # Another chain's coin is another asset.
    assert ask(chosen, request(transaction(value=9 * ETHER, chain_id=10))) == AskGate("r")


def test_a_total_of_the_policy_permits_nothing_unreadable() -> None:
    daily = Limit(name="daily", within="24h", total=1, asset=ETH)
    blind = rule(kinds=(Kind.HASH,), blind=True)
    refused = ask(policy(blind, limits=(daily,)), Request("a", Action.SIGN, "hot/1", Kind.HASH, blind=True))
    assert refused == Refuse("policy/limits", f"how much it moves of {ETH} cannot be read, and daily limits it")


# --- anomalies ---


def anomalous(**reactions: Reaction) -> Policy:
    return policy(rule(on_anomaly=OnAnomaly(**reactions)))


def test_a_destination_is_new_once() -> None:
    chosen = anomalous(first_seen_destination=Reaction.ASK_GATE)
    place = f"1:0x{ALICE.hex()}"
    new = ask(chosen, request())
    first = (Anomaly.FIRST_SEEN_DESTINATION,)
    assert new == AskGate("r", Charge((), (place,)), first, first)
    assert ask(chosen, request(), seen={place}) == AskGate("r", Charge((), (place,)))


@pytest.mark.parametrize(
    ("data", "seen", "new"),
    [
        (call("a9059cbb", BOB, 7), {TOKEN}, True),
        (call("a9059cbb", BOB, 7), {TOKEN, BOB}, False),
        (call("a9059cbb", BOB, 7) + b"\0", {TOKEN, BOB}, True),
    ],
)
def test_the_receiver_of_tokens_is_a_destination(data: bytes, seen: set[bytes], new: bool) -> None:
    chosen = anomalous(first_seen_destination=Reaction.REFUSE)
    decision = ask(chosen, request(transaction(TOKEN, data=data)), seen={f"1:0x{place.hex()}" for place in seen})
    assert isinstance(decision, Refuse) == new


def test_what_goes_nowhere_known_is_always_new() -> None:
    chosen = anomalous(first_seen_destination=Reaction.REFUSE)
    refused = Refuse("policy/anomaly", "the rule r refuses on first-seen-destination")
    assert ask(chosen, request(transaction(to=b""))) == refused


@pytest.mark.parametrize(
    ("recent", "day", "jumps"), [(19, 19, False), (20, 20, True), (20, 2000, False), (99, 2000, True)]
)
def test_a_rate_jumps(recent: int, day: int, jumps: bool) -> None:
    used = {"~rate 300s label=hot/1": recent, "~rate 86400s label=hot/1": day}
    decision = ask(anomalous(rate_jump=Reaction.FLAG), request(), used=used)
    assert (decision.anomalies == (Anomaly.RATE_JUMP,)) == jumps
    assert decision.to_gate == ()
    assert [count.amount for count in decision.charge.counts] == [1, 1]


def test_what_the_enclave_observed_counts_for_rules_that_ask() -> None:
    observed = {Anomaly.SLOW_GATE, Anomaly.REFUSAL_BURST}
    assert ask(anomalous(slow_gate=Reaction.ASK_GATE), request(), observed=observed).to_gate == (Anomaly.SLOW_GATE,)
    assert isinstance(ask(anomalous(refusal_burst=Reaction.REFUSE), request(), observed=observed), Refuse)
    assert ask(policy(rule()), request(), observed=observed) == AskGate("r")


# --- files ---

FILE = """
version: 1
clients: [{id: a, alg: Ed25519, public_key: %s}]
rules:
  - name: r
    clients: [a]
    actions: [sign]
    labels: [hot/*]
    kinds: [EthereumTransaction]
    limits: [%s]
    on_anomaly: {first-seen-destination: ask-gate, rate-jump: refuse}
"""


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("{name: x, within: 1h, signatures: 3}", ""),
        ("{name: x, within: 24h, total: 10 ether, asset: eip155:1/native, each: [label]}", ""),
        ("{name: x, within: 1h}", "needs either `signatures`, or `total` and `asset`"),
        ("{name: x, within: 1h, signatures: 3, asset: bitcoin}", "needs either"),
        ("{name: x, within: 32d, signatures: 3}", "`within` is at most 31d"),
        ("{name: x, within: 0h, signatures: 3}", "within"),
        ("{name: x, within: 1h, total: 0x10, asset: bitcoin}", "is no amount"),
        ("{name: x, within: 1h, total: 1, asset: ether}", "is no asset"),
        ("{name: x, within: 1h, signatures: 3, each: [label, label]}", "something twice"),
        ("{name: x, within: 1h, signatures: 3}, {name: x, within: 2h, signatures: 3}", "two limits have the name `x`"),
        ("{name: x, within: 1h, signatures: 3, per: label}", "unknown field `per`"),
    ],
)
def test_files(limit: str, said: str) -> None:
    text = FILE % (KEY, limit)
    if not said:
        assert parse_yaml(text, Policy, "p.yaml").rules[0].on_anomaly == OnAnomaly(Reaction.ASK_GATE, Reaction.REFUSE)
        return
    with pytest.raises(CallerError, match=said):
        parse_yaml(text, Policy, "p.yaml")


def test_a_rule_that_cannot_keep_its_total_is_refused() -> None:
    with pytest.raises(ValueError, match="of which no amount can be read"):
        rule(kinds=(Kind.HASH,), blind=True, limits=(Limit(name="x", within="1h", total=1, asset=ETH),))
    with pytest.raises(ValueError, match="does not permit `sign`"):
        rule(actions=(Action.CREATE_KEY,), kinds=(), limits=(HOURLY,))


def test_the_policy_says_whether_it_counts() -> None:
    assert not policy(rule(), rule("s", on_anomaly=OnAnomaly(slow_gate=Reaction.FLAG))).counts
    assert policy(rule(limits=(HOURLY,))).counts
    assert policy(rule(), limits=(HOURLY,)).counts
    assert policy(rule(on_anomaly=OnAnomaly(rate_jump=Reaction.FLAG))).counts


def test_charges_add_up() -> None:
    one = Charge((Count("x 1s", 1, 2, 5),), ("p",))
    assert one.plus(Charge((Count("x 1s", 1, 1, 5), Count("y 1s", 1, 1, 5)), ("p", "q"))) == Charge(
        (Count("x 1s", 1, 3, 5), Count("y 1s", 1, 1, 5)), ("p", "q")
    )
    assert not Charge()


def test_counters_of_a_table() -> None:
    table = msgspec.convert({"used": {"x 1s": 2}, "seen": ["p"], "observed": ["slow-gate"]}, Counters)
    assert table == Counters({"x 1s": 2}, frozenset({"p"}), frozenset({Anomaly.SLOW_GATE}))
