"""How much: limits of a rule and of the whole policy, and what a rule does about anomalies. The last check.

It answers why the request does not fit, or what signing it would add to the counters, and the anomalies to tell of.
What cannot be measured is not permitted.
"""

from __future__ import annotations

import re

import msgspec

from policies.counters import MAX_COUNTS, Charge, Count, Counters
from policies.decoded import BitcoinDecoded, EthereumDecoded
from policies.erc20 import SELECTORS, decode_call
from policies.facts import Request
from policies.globs import label_matches
from policies.limits import Anomaly, Asset, Each, Limit, Reaction
from policies.model import Kind, Policy, Rule

JUMP_WINDOW_S, USUAL_WINDOW_S = 300, 24 * 3600
JUMP_FACTOR, JUMP_LEAST = 5, 20


class Fits(msgspec.Struct, frozen=True):
    """The request keeps within all limits. `told`: anomalies to tell of; `to_gate`: those that the gate must see."""

    charge: Charge
    told: tuple[Anomaly, ...] = ()
    to_gate: tuple[Anomaly, ...] = ()


class Exceeds(msgspec.Struct, frozen=True):
    """Not permitted by this rule: `limits` or `anomaly`, and why."""

    check: str
    reason: str


_FREE = Fits(Charge())


def check(policy: Policy, rule: Rule, request: Request, counters: Counters, before: Charge) -> Fits | Exceeds:
    """Whether `request`, which fits `rule` in all else, keeps within the limits. `before`: what other parts of the
    same request add."""
    limits = (*rule.limits, *policy.limits)
    if not limits and rule.on_anomaly is None:
        return _FREE
    if counters.unknown and (limits or (rule.on_anomaly is not None and rule.on_anomaly.remembers)):
        return Exceeds("limits", f"what was signed before is not known: {counters.unknown}")
    counts: list[Count] = []
    for limit in limits:
        counted = _count(limit, request)
        if isinstance(counted, Exceeds):
            return counted
        if counted is not None:
            counts.append(counted)
    earlier = {count.key: count.amount for count in before.counts}
    for count in counts:
        used = counters.used.get(count.key, 0) + earlier.get(count.key, 0)
        if count.most is not None and used + count.amount > count.most:
            return Exceeds("limits", _exceeded(count, used))
    return _look(rule, request, counters, before, counts)


def _count(limit: Limit, request: Request) -> Count | Exceeds | None:
    """What `request` adds to the limit's counter; None where it does not count."""
    if limit.labels and not any(label_matches(pattern, request.label) for pattern in limit.labels):
        return None
    amount = request.signatures if limit.asset is None else moved(Asset.parse(limit.asset), request)
    if amount is None:
        return Exceeds("limits", f"how much it moves of {limit.asset} cannot be read, and {limit.name} limits it")
    if amount == 0:
        return None
    return Count(_key(limit, request.label, request.client_id), limit.window_s, amount, limit.most)


def _key(limit: Limit, label: str, client_id: str) -> str:
    scope = {Each.LABEL: f" label={label}", Each.CLIENT: f" client={client_id}"}
    return f"{limit.name} {limit.window_s}s" + "".join(scope[each] for each in sorted(limit.each))


def counts_under(policy: Policy, key: str) -> bool:
    """Whether `key` is that of a counter of `policy`, for whatever label and client."""
    limits = (policy.limits, *(rule.limits for rule in policy.rules))
    shapes = {_key(limit, "", "") for some in limits for limit in some}
    shapes |= {f"~rate {window_s}s label=" for window_s in (JUMP_WINDOW_S, USUAL_WINDOW_S)}
    return re.sub("=[^ ]+", "=", key) in shapes


def _exceeded(count: Count, used: int) -> str:
    name = count.key.split(" ")[0]
    return f"the limit {name} has room for {max(0, (count.most or 0) - used)} of {count.most}, not for {count.amount}"


def moved(asset: Asset, request: Request) -> int | None:
    """The most of `asset`, in its smallest unit, that can leave through `request`; None where that cannot be read.

    A native coin: the value and the highest fee. A token: what a call of its contract moves, or lets others move.
    Bitcoin: the whole input that is signed.
    """
    decoded = request.decoded
    if isinstance(decoded, BitcoinDecoded):
        return decoded.amount if asset.chain_id == 0 else 0
    if not isinstance(decoded, EthereumDecoded) or request.kind is not Kind.ETHEREUM_TRANSACTION:
        return None
    if decoded.chain_id != asset.chain_id:
        return 0
    if asset.token is None:
        return decoded.value + decoded.max_fee
    if decoded.to != asset.token:
        return 0
    call = decode_call(decoded.data)
    return None if call is None else call.amount


def destinations(request: Request) -> tuple[str, ...]:
    """Who gets something, as `<chain id>:<address>`; empty where that cannot be read, or a contract is created."""
    decoded = request.decoded
    if not isinstance(decoded, EthereumDecoded) or not decoded.to:
        return ()
    found = [decoded.to]
    if decoded.data[:4] in SELECTORS:
        call = decode_call(decoded.data)
        if call is None:
            return ()
        found.append(call.recipient)
    return tuple(f"{decoded.chain_id}:0x{address.hex()}" for address in found)


def _look(rule: Rule, request: Request, counters: Counters, before: Charge, counts: list[Count]) -> Fits | Exceeds:
    """Anomalies, as far as `rule` asks for them."""
    wanted = rule.on_anomaly
    if wanted is None:
        return _fits(counts, (), (), ())
    reached: tuple[str, ...] = ()
    found = [anomaly for anomaly in sorted(counters.observed) if wanted.reaction(anomaly) is not None]
    if wanted.first_seen_destination is not None:
        reached = destinations(request)
        if not reached or any(place not in counters.seen and place not in before.destinations for place in reached):
            found.append(Anomaly.FIRST_SEEN_DESTINATION)
    if wanted.rate_jump is not None:
        recent, usual = (_watch(window_s, request) for window_s in (JUMP_WINDOW_S, USUAL_WINDOW_S))
        counts += (recent, usual)
        if _jumps(recent, usual, counters, before):
            found.append(Anomaly.RATE_JUMP)
    for anomaly in found:
        if wanted.reaction(anomaly) is Reaction.REFUSE:
            return Exceeds("anomaly", f"the rule {rule.name} refuses on {anomaly}")
    to_gate = tuple(anomaly for anomaly in found if wanted.reaction(anomaly) is Reaction.ASK_GATE)
    return _fits(counts, reached, tuple(found), to_gate)


def _fits(
    counts: list[Count], reached: tuple[str, ...], told: tuple[Anomaly, ...], to_gate: tuple[Anomaly, ...]
) -> Fits | Exceeds:
    if len(counts) > MAX_COUNTS:
        return Exceeds("limits", f"more than {MAX_COUNTS} counters would count one request")
    return Fits(Charge(tuple(counts), reached), told, to_gate)


def _watch(window_s: int, request: Request) -> Count:
    return Count(f"~rate {window_s}s label={request.label}", window_s, request.signatures, None)


def _jumps(recent: Count, usual: Count, counters: Counters, before: Charge) -> bool:
    """More than `JUMP_LEAST` in five minutes, and more than `JUMP_FACTOR` times the mean of the 24 h before."""
    earlier = {count.key: count.amount for count in before.counts}
    now, day = (counters.used.get(count.key, 0) + earlier.get(count.key, 0) + count.amount for count in (recent, usual))
    return now > JUMP_LEAST and now * (USUAL_WINDOW_S // JUMP_WINDOW_S) > JUMP_FACTOR * day
