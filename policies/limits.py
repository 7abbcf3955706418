"""Limits and anomalies as a policy file states them. What is counted, and how: `policies.rules.limits`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated

import msgspec

from policies.amounts import SATOSHI, WEI, Amount, parse_amount
from policies.globs import check_label_glob

MAX_LIMITS = 8
MAX_LABELS = 256
MAX_WINDOW_S = 31 * 24 * 3600
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_ASSET = re.compile(r"eip155:(?P<chain>[1-9][0-9]{0,77})/(native|erc20:(?P<token>0x[0-9a-f]{40}))|bitcoin")

LimitName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$(?!\n)")]
Window = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,6}[smhd]$(?!\n)")]


class Each(StrEnum):
    """By what a limit counts apart."""

    LABEL = "label"
    CLIENT = "client"


class Asset(msgspec.Struct, frozen=True):
    """What an amount is of: the native coin of a chain (`token` None), an ERC-20 token (20 bytes), or bitcoin
    (`chain_id` 0)."""

    chain_id: int
    token: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> Asset:
        """`eip155:1/native`, `eip155:1/erc20:0x<40 lower-case hex digits>` or `bitcoin`. Raises `ValueError`."""
        found = _ASSET.fullmatch(text)
        if found is None:
            raise ValueError(f"`{text}` is no asset such as `eip155:1/native`, `eip155:1/erc20:0x…` or `bitcoin`")
        token = found["token"]
        return cls(int(found["chain"] or 0), bytes.fromhex(token[2:]) if token else None)

    @property
    def units(self) -> Mapping[str, int]:
        """In which units its amounts can be written."""
        return SATOSHI if self.chain_id == 0 else WEI if self.token is None else {"units": 0}


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most `signatures` signatures, or at most `total` of `asset`, within any `within` (`90s`, `15m`, `1h`, `7d`).

    `each`: counted apart for each key label, each client, or each pair; left out, all together. `labels`: only
    signatures with these keys count; left out, all. `total` is in the asset's smallest unit, or such as `1.5 ether` or
    `0.2 BTC`. The name stays with what was counted: a limit with another name, window or `each` counts from nothing.
    """

    name: LimitName
    within: Window
    signatures: Annotated[int, msgspec.Meta(ge=0, le=10**9)] | None = None
    total: Amount | None = None
    asset: str | None = None
    each: Annotated[tuple[Each, ...], msgspec.Meta(max_length=len(Each))] = ()
    labels: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_LABELS)] = ()

    def __post_init__(self) -> None:
        if self.window_s > MAX_WINDOW_S:
            raise ValueError(f"limit {self.name}: `within` is at most {MAX_WINDOW_S // (24 * 3600)}d")
        if (self.signatures is None) == (self.total is None) or (self.total is None) != (self.asset is None):
            raise ValueError(f"limit {self.name} needs either `signatures`, or `total` and `asset`")
        if self.total is not None and self.asset is not None:
            parse_amount(self.total, Asset.parse(self.asset).units)
        if len(set(self.each)) != len(self.each):
            raise ValueError(f"limit {self.name}: `each` names something twice")
        for pattern in self.labels:
            check_label_glob(pattern)

    @property
    def window_s(self) -> int:
        """`within` in seconds."""
        return int(self.within[:-1]) * _UNIT_S[self.within[-1]]

    @property
    def most(self) -> int:
        """The most that may be counted within the window."""
        if self.total is None or self.asset is None:
            return self.signatures or 0
        return parse_amount(self.total, Asset.parse(self.asset).units)


Limits = Annotated[tuple[Limit, ...], msgspec.Meta(max_length=MAX_LIMITS)]


class Anomaly(StrEnum):
    """What is out of the ordinary: see README.md."""

    FIRST_SEEN_DESTINATION = "first-seen-destination"
    RATE_JUMP = "rate-jump"
    REFUSAL_BURST = "refusal-burst"
    SLOW_GATE = "slow-gate"


class Reaction(StrEnum):
    """What a rule does about an anomaly: tell (metrics, log), tell the gate too, or not permit."""

    FLAG = "flag"
    ASK_GATE = "ask-gate"
    REFUSE = "refuse"


class OnAnomaly(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A rule's reactions, by anomaly. One that is left out is not looked for on behalf of this rule."""

    first_seen_destination: Reaction | None = None
    rate_jump: Reaction | None = None
    refusal_burst: Reaction | None = None
    slow_gate: Reaction | None = None

    def reaction(self, anomaly: Anomaly) -> Reaction | None:
        """What the rule does about `anomaly`."""
        return {
            Anomaly.FIRST_SEEN_DESTINATION: self.first_seen_destination,
            Anomaly.RATE_JUMP: self.rate_jump,
            Anomaly.REFUSAL_BURST: self.refusal_burst,
            Anomaly.SLOW_GATE: self.slow_gate,
        }[anomaly]

    @property
    def remembers(self) -> bool:
        """Whether anything of it needs what was signed before."""
        return self.first_seen_destination is not None or self.rate_jump is not None


def check_names(limits: Iterable[Limit]) -> None:
    """Raises `ValueError` where two limits of a policy have one name: they would count together."""
    seen: set[str] = set()
    for limit in limits:
        if limit.name in seen:
            raise ValueError(f"two limits have the name `{limit.name}`")
        seen.add(limit.name)


def check_measurable(rule: str, limits: Iterable[Limit], kinds: Iterable[str]) -> None:
    """Raises `ValueError` where a rule limits a total and permits what no amount can be read of."""
    readable = {"EthereumTransaction", "BitcoinBip143Preimage"}
    for limit in limits:
        if limit.asset is not None and (unreadable := set(kinds) - readable):
            raise ValueError(
                f"rule {rule} has the total `{limit.name}` and the kind {min(unreadable)}, of which no amount can be "
                "read: make two rules of it"
            )
