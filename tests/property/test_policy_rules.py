"""Any policy, any request: decisions are the same each time, and a rule that says more never permits more."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave.payloads import keccak256
from policies.clients import Algorithm, Client
from policies.constraints import Erc20Constraints, EthereumConstraints
from policies.counters import Counters
from policies.decide import AskGate, Decision, decide
from policies.erc20 import SELECTORS, decode_call, encode_call
from policies.facts import Request
from policies.hours import WEEK, Hours
from policies.model import Action, Kind, Policy, Rule
from policies.payloads.ethereum import parse_transaction
from tests.fakes.payloads import encoded_transaction

CLIENT = Client("a", Algorithm.ED25519, "D9N68QU1RanlzPzIOty0YP4STv-oi43I7x6lrXyyjtE")
PLACES = [bytes([number]) * 20 for number in (1, 2, 3)]
LISTS = {"one": ("0x" + "01" * 20,), "two": ("0x" + "02" * 20, "0x" + "01" * 20)}
ERC20 = ["transfer(address,uint256)", "transferFrom(address,address,uint256)", "approve(address,uint256)"]

places = st.sampled_from([*("0x" + place.hex() for place in PLACES), *LISTS])
amounts = st.integers(0, 5)
words = st.one_of(
    st.sampled_from(PLACES).map(lambda place: place.rjust(32, b"\0")), amounts.map(lambda n: n.to_bytes(32))
)
calls = st.tuples(st.sampled_from([*SELECTORS, b"\1\2\3\4"]), st.lists(words, max_size=4), st.binary(max_size=2)).map(
    lambda parts: parts[0] + b"".join(parts[1]) + parts[2]
)
exact = st.builds(
    lambda recipient, amount: SELECTOR + recipient.rjust(32, b"\0") + amount.to_bytes(32),
    st.sampled_from(PLACES),
    amounts,
)
SELECTOR = bytes.fromhex("a9059cbb")


def some(of: st.SearchStrategy[Any], least: int = 1) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, min_size=least, max_size=3, unique=True).map(tuple)


@st.composite
def constraints(draw: st.DrawFn) -> EthereumConstraints:
    erc20 = None
    if draw(st.booleans()):
        methods = draw(some(st.sampled_from(ERC20)))
        senders = draw(some(places)) if ERC20[1] in methods else None
        erc20 = Erc20Constraints(draw(some(places | st.just("any"))), senders, draw(st.none() | amounts))
        to = draw(some(places))
    else:
        methods = draw(some(st.sampled_from(["none", "any", "0x01020304", *ERC20])))
        to = draw(some(places | st.sampled_from(["any", "new-contract"])))
    most = st.none() | amounts
    return EthereumConstraints(draw(some(st.sampled_from([1, 2]))), to, methods, draw(most), draw(most), erc20)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    changes = {
        0: draw(st.sampled_from([1, 2, 3])),
        2: 0,
        3: draw(st.integers(0, 3)),
        4: draw(st.integers(0, 3)),
        5: draw(st.sampled_from([*PLACES, b""])),
        6: draw(amounts),
        7: draw(st.just(b"") | exact | calls | st.binary(max_size=5)),
    }
    h, decoded = parse_transaction(encoded_transaction(changes), keccak256)
    assert len(h) == 32
    return Request("a", Action.SIGN, "hot/1", Kind.ETHEREUM_TRANSACTION, False, (), decoded)


def ask(rule: Rule, request: Request, now_s: int = 0) -> Decision:
    policy = Policy(1, (CLIENT,), (rule,), addresses=LISTS)
    decision = decide(policy, request, Counters(), now_s)
    # The same policy, read anew, has the same digest and decides the same: nothing is remembered.
    again = msgspec.convert(msgspec.to_builtins(policy), Policy)
    assert (again.digest(), decide(again, request, Counters(), now_s)) == (policy.digest(), decision)
    return decision


def permits(
    limits: EthereumConstraints | None, request: Request, hours: tuple[Hours, ...] = (), now_s: int = 0
) -> bool:
    rule = Rule("r", ("a",), (Action.SIGN,), ("hot/*",), (Kind.ETHEREUM_TRANSACTION,), ethereum=limits, hours=hours)
    return isinstance(ask(rule, request, now_s), AskGate)


def replaced(limits: EthereumConstraints, **changes: Any) -> EthereumConstraints:
    return msgspec.structs.replace(limits, **changes)


def narrower(limits: EthereumConstraints) -> list[EthereumConstraints]:
    """Everything that says one thing more, or names one thing less."""
    found = [
        replaced(limits, **{field: most})
        for field in ("max_value", "max_fee")
        for most in _lower(getattr(limits, field))
    ]
    for field in ("chains", "to"):
        found += [replaced(limits, **{field: rest}) for rest in _without_one(getattr(limits, field))]
    erc20 = limits.erc20
    if erc20 is None:
        found += [replaced(limits, methods=rest) for rest in _without_one(limits.methods)]
        return found
    smaller = [msgspec.structs.replace(erc20, max_amount=most) for most in _lower(erc20.max_amount)]
    smaller += [msgspec.structs.replace(erc20, recipients=rest) for rest in _without_one(erc20.recipients)]
    smaller += [msgspec.structs.replace(erc20, senders=rest) for rest in _without_one(erc20.senders or ())]
    return found + [replaced(limits, erc20=one) for one in smaller]


def _lower(most: Any) -> list[int]:
    return [0, 2] if most is None else [most - 1] if most else []


def _without_one(items: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [items[:place] + items[place + 1 :] for place in range(len(items))] if len(items) > 1 else []


@settings(max_examples=200)
@given(constraints(), requests())
def test_a_rule_that_says_more_never_permits_more(limits: EthereumConstraints, request: Request) -> None:
    permitted = permits(limits, request)
    if permitted:
        assert permits(None, request)
        return
    for tighter in narrower(limits):
        assert not permits(tighter, request), tighter


@settings(max_examples=100)
@given(constraints(), requests())
def test_erc20_never_permits_what_its_methods_alone_do_not(limits: EthereumConstraints, request: Request) -> None:
    if limits.erc20 is not None and permits(limits, request):
        assert permits(replaced(limits, erc20=None), request)


@settings(max_examples=200)
@given(constraints(), requests())
def test_what_is_permitted_is_within_the_words_of_the_rule(limits: EthereumConstraints, request: Request) -> None:
    """Told a second time, and differently: what must hold of every transaction that is permitted."""
    if not permits(limits, request):
        return
    decoded: Any = request.decoded
    assert decoded.chain_id in limits.chains
    assert limits.max_value is None or decoded.value <= int(limits.max_value)
    assert limits.max_fee is None or decoded.gas_limit * decoded.max_fee_per_gas <= int(limits.max_fee)
    listed = {address for name in limits.to for address in LISTS.get(name, (name,))}
    assert ("new-contract" if not decoded.to else "0x" + decoded.to.hex()) in listed or (decoded.to and "any" in listed)
    if decoded.to and "any" not in limits.methods:
        selectors = {method: selector for selector, method in SELECTORS.items()}
        assert decoded.data[:4] in {
            b"" if method == "none" else selectors.get(method, b"\1\2\3\4") for method in limits.methods
        }
    if limits.erc20 is not None:
        call = decode_call(decoded.data)
        assert call is not None
        assert encode_call(call) == decoded.data
        assert limits.erc20.max_amount is None or call.amount <= int(limits.erc20.max_amount)


@settings(max_examples=300)
@given(st.binary(max_size=120) | calls | exact)
def test_a_call_has_one_encoding_or_is_none(data: bytes) -> None:
    call = decode_call(data)
    if call is not None:
        assert encode_call(call) == data
        assert decode_call(data + b"\0") is None
        assert decode_call(data[:-1]) is None


@st.composite
def hours(draw: st.DrawFn) -> Hours:
    minutes = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
    start = draw(minutes)
    until = draw((minutes | st.just("24:00")).filter(lambda text: text != start))
    return Hours(tuple(draw(some(st.sampled_from(WEEK)))), start, until)


@settings(max_examples=25)
@given(hours(), st.integers(0, 2**40), st.integers(-60, 60))
def test_hours_recur_weekly_and_last_as_long_as_they_say(one: Hours, week: int, minute: int) -> None:
    start = week % (10**6) * 7 * 24 * 3600 + minute * 60
    open_minutes = sum(one.cover(start + at * 60) for at in range(7 * 24 * 60))
    begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in (one.start, one.until))
    assert open_minutes == len(one.days) * ((end - begin) % (24 * 60) or 24 * 60)
    assert one.cover(start) == one.cover(start + 7 * 24 * 3600)
