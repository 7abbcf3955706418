"""What a policy file says. See README.md for the file's format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from enum import StrEnum
from functools import cached_property
from typing import Annotated

import msgspec

from policies.addresses import AddressLists, Places, check_listed, check_lists
from policies.approvals import Approvals
from policies.clients import Client, Name
from policies.constraints import (
    BitcoinConstraints,
    EthereumConstraints,
    MessageConstraints,
    TypedDataConstraints,
)
from policies.globs import check_label_glob, check_path_glob
from policies.hours import ManyHours
from policies.limits import Limits, OnAnomaly, check_measurable, check_names
from policies.mistakes import Mistake, refuse_repeats
from policies.operators import Operators
from policies.signed_requests import MAX_LIFETIME_S
from policies.transcript import Tag, digest

MAX_CLIENTS = 256
MAX_RULES = 256
MAX_PATTERNS = 256

Patterns = Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_PATTERNS)]


class Action(StrEnum):
    """What a client can ask for."""

    CREATE_KEY = "create-key"
    SIGN = "sign"


class Kind(StrEnum):
    """What can be signed: the `kind` of a signing body (`policies.requests`)."""

    HASH = "Hash"
    HASH_BATCH = "HashBatch"
    MESSAGE = "Message"
    ETHEREUM_TRANSACTION = "EthereumTransaction"
    EIP712_TYPED_DATA = "Eip712TypedData"
    BITCOIN_BIP143_PREIMAGE = "BitcoinBip143Preimage"


_FIELDS = {
    Kind.ETHEREUM_TRANSACTION: "ethereum",
    Kind.EIP712_TYPED_DATA: "typed_data",
    Kind.BITCOIN_BIP143_PREIMAGE: "bitcoin",
    Kind.MESSAGE: "message",
}
ALWAYS_BLIND = frozenset({Kind.HASH, Kind.HASH_BATCH})


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """One permission: a request that fits *all* of its fields is permitted; a missing field permits nothing.

    `labels` and `derivation_paths` are patterns (`policies.globs`). `derivation_paths` left out means the key
    itself (`m`). `blind` permits to sign what the enclave cannot read. `limits`, `on_anomaly`: `policies.limits`;
    `approvals`: who else must say yes. `ethereum`, `typed_data`, `bitcoin`, `message`: what the payload may say
    (`policies.constraints`). `hours`: when.
    """

    name: Name
    clients: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=MAX_CLIENTS)]
    actions: Annotated[tuple[Action, ...], msgspec.Meta(min_length=1, max_length=len(Action))]
    labels: Annotated[Patterns, msgspec.Meta(min_length=1)]
    kinds: Annotated[tuple[Kind, ...], msgspec.Meta(max_length=len(Kind))] = ()
    blind: bool = False
    derivation_paths: Patterns = ("m",)
    limits: Limits = ()
    on_anomaly: OnAnomaly | None = None
    approvals: Approvals | None = None
    ethereum: EthereumConstraints | None = None
    typed_data: TypedDataConstraints | None = None
    bitcoin: BitcoinConstraints | None = None
    message: MessageConstraints | None = None
    hours: ManyHours = ()

    def __post_init__(self) -> None:
        _check_each(check_label_glob, self.labels, "labels")
        _check_each(check_path_glob, self.derivation_paths, "derivation_paths")
        if Action.SIGN in self.actions and not self.kinds:
            raise Mistake(f"rule {self.name} permits `sign` but no `kinds`: it would permit nothing", "actions")
        if Action.SIGN not in self.actions and (self.kinds or self.blind):
            raise ValueError(f"rule {self.name} has `kinds` or `blind` but does not permit `sign`")
        if Action.SIGN not in self.actions and (self.limits or self.on_anomaly):
            raise ValueError(f"rule {self.name} has `limits` or `on_anomaly` but does not permit `sign`")
        check_measurable(self.name, self.limits, self.kinds)
        if self.approvals is not None and self.actions != (Action.SIGN,):
            raise ValueError(f"rule {self.name} has `approvals`, which are for signing: `actions` must be `[sign]`")
        for client_id in self.clients:
            if self.approvals is not None and not self.approvals.attainable(client_id):
                told = "nobody approves its own request, unless `requester_counts`"
                raise ValueError(f"rule {self.name}: {client_id} could never have enough approvals: {told}")
        if not self.blind and (blind := ALWAYS_BLIND.intersection(self.kinds)):
            kind = min(blind).value
            told = f"rule {self.name} lists the kind {kind}, which is always blind: add `blind: true` or drop {kind}"
            raise Mistake(told, "kinds")
        self._check_constraints()

    def _check_constraints(self) -> None:
        """A rule that constrains payloads constrains all that it permits: a kind without is a rule of its own."""
        if self.hours and Action.SIGN not in self.actions:
            raise Mistake(f"rule {self.name} has `hours` but does not permit `sign`", "hours")
        if self.constrains and self.blind:
            raise Mistake(f"rule {self.name} limits what is signed, so it can't be blind: make two rules", "blind")
        for kind in self.constraints:
            if kind not in self.kinds:
                field = _FIELDS[kind]
                raise Mistake(f"rule {self.name} has `{field}` but does not list the kind {kind.value}", field)
        for number, kind in enumerate(self.kinds):
            if self.constrains and kind not in self.constraints:
                told = f"rule {self.name} limits other kinds but not {kind.value}: make two rules"
                raise Mistake(told, "kinds", number)

    @cached_property
    def constraints(self) -> frozenset[Kind]:
        """The kinds whose payloads this rule constrains."""
        return frozenset(kind for kind, field in _FIELDS.items() if getattr(self, field) is not None)

    @cached_property
    def constrains(self) -> bool:
        """Whether this rule constrains what payloads say."""
        return bool(self.constraints)


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """A signer's own policy. What no rule permits is refused, so no rules refuse everything. `limits` hold for all
    signatures, whichever rule permits them. `addresses`: lists that rules name."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    clients: Annotated[tuple[Client, ...], msgspec.Meta(max_length=MAX_CLIENTS)]
    rules: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=MAX_RULES)]
    limits: Limits = ()
    operators: Operators | None = None
    addresses: AddressLists = {}

    def __post_init__(self) -> None:
        # An order of an operator is never a client's request, nor an approval.
        signing = (*self.clients, *(self.operators.keys if self.operators is not None else ()))
        refuse_repeats("two clients have the id", (client.id for client in self.clients), "clients")
        refuse_repeats(
            "two clients or operators have the same key", (client.key_bytes.hex() for client in signing), "clients"
        )
        refuse_repeats("two rules have the name", (rule.name for rule in self.rules), "rules")
        known = {client.id for client in self.clients}
        for number, rule in enumerate(self.rules):
            approvers = rule.approvals.of if rule.approvals is not None else ()
            _check_known(rule, rule.clients, known, "rules", number, "clients")
            _check_known(rule, approvers, known, "rules", number, "approvals", "of")
        check_lists(self.addresses)
        for number, rule in enumerate(self.rules):
            for field, places in places_of(rule):
                check_listed(places, self.addresses, "rules", number, *field)
        check_names(limit for limits in (self.limits, *(rule.limits for rule in self.rules)) for limit in limits)

    @property
    def counts(self) -> bool:
        """Whether any decision may need what was signed before."""
        return bool(self.limits) or any(
            rule.limits or (rule.on_anomaly is not None and rule.on_anomaly.remembers) for rule in self.rules
        )

    @cached_property
    def address_sets(self) -> dict[str, frozenset[bytes]]:
        """The lists under `addresses`, 20 bytes an address."""
        return {
            name: frozenset(bytes.fromhex(address[2:]) for address in listed) for name, listed in self.addresses.items()
        }

    @property
    def longest_s(self) -> int:
        """For how long a request may be signed: longer than usual where some rule lets it wait for approvals."""
        return max([MAX_LIFETIME_S, *(rule.approvals.within_s for rule in self.rules if rule.approvals is not None)])

    def client(self, client_id: str) -> Client | None:
        """The client with this id, or None."""
        return next((client for client in self.clients if client.id == client_id), None)

    def digest(self) -> bytes:
        """32 bytes that pin every field of the policy (not the file's comments or layout)."""
        return digest(Tag.POLICY, msgspec.msgpack.encode(msgspec.to_builtins(self, order="sorted")))


def _check_each(check: Callable[[str], None], patterns: Iterable[str], field: str) -> None:
    for number, pattern in enumerate(patterns):
        try:
            check(pattern)
        except ValueError as error:
            raise Mistake(str(error), field, number) from None


def _check_known(rule: Rule, clients: Iterable[str], known: Collection[str], *path: str | int) -> None:
    for place, client_id in enumerate(clients):
        if client_id not in known:
            raise Mistake(f"rule {rule.name} names the client `{client_id}`, which is not listed", *path, place)


def places_of(rule: Rule) -> Iterator[tuple[tuple[str, ...], Places]]:
    """Where `rule` names addresses or lists of them."""
    if rule.ethereum is not None:
        yield ("ethereum", "to"), rule.ethereum.to
        if (erc20 := rule.ethereum.erc20) is not None:
            yield ("ethereum", "erc20", "recipients"), erc20.recipients
            yield ("ethereum", "erc20", "senders"), erc20.senders or ()
    if rule.typed_data is not None:
        yield ("typed_data", "verifying_contracts"), rule.typed_data.verifying_contracts
