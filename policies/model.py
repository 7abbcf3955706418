"""What a policy file says. See README.md for the file's format."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from enum import StrEnum
from functools import cached_property
from typing import Annotated

import msgspec

from policies.addresses import AddressLists, Places, unlisted, wrong_lists
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
from policies.mistakes import Mistake, refuse, repeats, wrong_items
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
        check_measurable(self.name, self.limits, self.kinds)
        refuse(
            [
                *wrong_items(check_label_glob, self.labels, "labels"),
                *wrong_items(check_path_glob, self.derivation_paths, "derivation_paths"),
                *self._contradictions(),
                *self._approval_mistakes(),
                *self._constraint_mistakes(),
            ]
        )

    def _contradictions(self) -> Iterator[Mistake]:
        signs = Action.SIGN in self.actions
        if signs and not self.kinds:
            yield Mistake(f"rule {self.name} permits `sign` but no `kinds`: it would permit nothing", "actions")
        if not signs and (self.kinds or self.blind):
            yield Mistake(f"rule {self.name} has `kinds` or `blind` but does not permit `sign`", "actions")
        if not signs and (self.limits or self.on_anomaly):
            yield Mistake(f"rule {self.name} has `limits` or `on_anomaly` but does not permit `sign`", "actions")
        if not signs and self.hours:
            yield Mistake(f"rule {self.name} has `hours` but does not permit `sign`", "actions")
        if not self.blind and (blind := ALWAYS_BLIND.intersection(self.kinds)):
            kind = min(blind).value
            told = f"rule {self.name} lists the kind {kind}, which is always blind: add `blind: true` or drop {kind}"
            yield Mistake(told, "kinds")

    def _approval_mistakes(self) -> Iterator[Mistake]:
        if self.approvals is None:
            return
        if self.actions != (Action.SIGN,):
            told = f"rule {self.name} has `approvals`, which are for signing: `actions` must be `[sign]`"
            yield Mistake(told, "actions")
        for client_id in self.clients:
            if not self.approvals.attainable(client_id):
                told = "nobody approves its own request, unless `requester_counts`"
                yield Mistake(f"rule {self.name}: {client_id} could never have enough approvals: {told}", "approvals")

    def _constraint_mistakes(self) -> Iterator[Mistake]:
        """A rule that constrains payloads constrains all that it permits: a kind without is a rule of its own."""
        if self.constrains and self.blind:
            yield Mistake(f"rule {self.name} limits what is signed, so it can't be blind: make two rules", "blind")
        for kind in self.constraints:
            if kind not in self.kinds:
                field = _FIELDS[kind]
                yield Mistake(f"rule {self.name} has `{field}` but does not list the kind {kind.value}", field)
        for number, kind in enumerate(self.kinds):
            if self.constrains and kind not in self.constraints:
                told = f"rule {self.name} limits other kinds but not {kind.value}: make two rules"
                yield Mistake(told, "kinds", number)

    @cached_property
    def constraints(self) -> tuple[Kind, ...]:
        """The kinds whose payloads this rule constrains."""
        return tuple(kind for kind, field in _FIELDS.items() if getattr(self, field) is not None)

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
        keys = (client.key_bytes.hex() for client in signing)
        mistakes = [
            *repeats("two clients have the id", (client.id for client in self.clients), "clients"),
            *repeats("two clients or operators have the same key", keys, "clients"),
            *repeats("two rules have the name", (rule.name for rule in self.rules), "rules"),
            *wrong_lists(self.addresses),
        ]
        known = {client.id for client in self.clients}
        for number, rule in enumerate(self.rules):
            approvers = rule.approvals.of if rule.approvals is not None else ()
            mistakes += _unknown(rule, rule.clients, known, "rules", number, "clients")
            mistakes += _unknown(rule, approvers, known, "rules", number, "approvals", "of")
            for field, places in places_of(rule):
                mistakes += unlisted(places, self.addresses, "rules", number, *field)
        refuse(mistakes)
        check_names(limit for limits in (self.limits, *(rule.limits for rule in self.rules)) for limit in limits)

    @cached_property
    def counts(self) -> bool:
        """Whether any decision may need what was signed before."""
        return bool(self.limits) or any(
            rule.limits or (rule.on_anomaly is not None and rule.on_anomaly.remembers) for rule in self.rules
        )

    @cached_property
    def has_hours(self) -> bool:
        """Whether any decision depends on the wall clock."""
        return any(rule.hours for rule in self.rules)

    @cached_property
    def depends_on_when(self) -> bool:
        """Whether what is permitted now may be refused later, though this policy stays the same."""
        return self.counts or any(
            rule.on_anomaly is not None or rule.approvals is not None or rule.hours for rule in self.rules
        )

    @cached_property
    def address_sets(self) -> dict[str, frozenset[bytes]]:
        """The lists under `addresses`, 20 bytes an address."""
        return {
            name: frozenset(bytes.fromhex(address[2:]) for address in listed) for name, listed in self.addresses.items()
        }

    @cached_property
    def longest_s(self) -> int:
        """For how long a request may be signed: longer than usual where some rule lets it wait for approvals."""
        return max([MAX_LIFETIME_S, *(rule.approvals.within_s for rule in self.rules if rule.approvals is not None)])

    def client(self, client_id: str) -> Client | None:
        """The client with this id, or None."""
        return self._by_id.get(client_id)

    @cached_property
    def _by_id(self) -> dict[str, Client]:
        return {client.id: client for client in self.clients}

    def digest(self) -> bytes:
        """32 bytes that pin what the policy says: not the file's comments or layout, nor whether what is left out is
        written out, so that a field that comes with a later version changes no digest of before."""
        return digest(Tag.POLICY, msgspec.msgpack.encode(_said(self)))


def _unknown(rule: Rule, clients: Iterable[str], known: Collection[str], *path: str | int) -> Iterator[Mistake]:
    for place, client_id in enumerate(clients):
        if client_id not in known:
            yield Mistake(f"rule {rule.name} names the client `{client_id}`, which is not listed", *path, place)


def places_of(rule: Rule) -> Iterator[tuple[tuple[str, ...], Places]]:
    """Where `rule` names addresses or lists of them."""
    if rule.ethereum is not None:
        yield ("ethereum", "to"), rule.ethereum.to
        if (erc20 := rule.ethereum.erc20) is not None:
            yield ("ethereum", "erc20", "recipients"), erc20.recipients
            yield ("ethereum", "erc20", "senders"), erc20.senders or ()
    if rule.typed_data is not None:
        yield ("typed_data", "verifying_contracts"), rule.typed_data.verifying_contracts


def _said(value: object) -> object:
    """`value` as plain data in one order, without fields that say what leaving them out would say."""
    if isinstance(value, msgspec.Struct):
        fields = sorted(msgspec.structs.fields(value), key=lambda field: field.encode_name)
        found = ((field, getattr(value, field.name)) for field in fields)
        return {field.encode_name: _said(said) for field, said in found if said != _left_out(field)}
    if isinstance(value, dict):
        return {name: _said(value[name]) for name in sorted(value)}
    return [_said(one) for one in value] if isinstance(value, tuple) else value


def _left_out(field: msgspec.structs.FieldInfo) -> object:
    """What `field` is where it is left out."""
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
