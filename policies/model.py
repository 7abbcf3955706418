"""What a policy file says. See README.md for the file's format."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import msgspec

from policies.approvals import Approvals
from policies.clients import Client, Name
from policies.globs import check_label_glob, check_path_glob
from policies.limits import Limits, OnAnomaly, check_measurable, check_names
from policies.operators import Operators
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


ALWAYS_BLIND = frozenset({Kind.HASH, Kind.HASH_BATCH})


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One permission: a request that fits *all* of its fields is permitted; a missing field permits nothing.

    `labels` and `derivation_paths` are patterns (`policies.globs`). `derivation_paths` left out means the key
    itself (`m`). `blind` permits to sign what the enclave cannot read. `limits`, `on_anomaly`: `policies.limits`;
    `approvals`: who else must say yes.
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

    def __post_init__(self) -> None:
        for pattern in self.labels:
            check_label_glob(pattern)
        for pattern in self.derivation_paths:
            check_path_glob(pattern)
        if Action.SIGN in self.actions and not self.kinds:
            raise ValueError(f"rule {self.name} permits `sign` but no `kinds`: it would permit nothing")
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
            raise ValueError(
                f"rule {self.name} lists the kind {kind}, which is always blind: add `blind: true` or drop {kind}"
            )


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signer's own policy. What no rule permits is refused, so no rules refuse everything. `limits` hold for all
    signatures, whichever rule permits them."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    clients: Annotated[tuple[Client, ...], msgspec.Meta(max_length=MAX_CLIENTS)]
    rules: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=MAX_RULES)]
    limits: Limits = ()
    operators: Operators | None = None

    def __post_init__(self) -> None:
        # An order of an operator is never a client's request, nor an approval.
        signing = (*self.clients, *(self.operators.keys if self.operators is not None else ()))
        _refuse_repeats("two clients have the id", (client.id for client in self.clients))
        _refuse_repeats("two clients or operators have the same key", (client.key_bytes.hex() for client in signing))
        _refuse_repeats("two rules have the name", (rule.name for rule in self.rules))
        known = {client.id for client in self.clients}
        for rule in self.rules:
            approvers = rule.approvals.of if rule.approvals is not None else ()
            for client_id in (*rule.clients, *approvers):
                if client_id not in known:
                    raise ValueError(f"rule {rule.name} names the client `{client_id}`, which is not listed")
        check_names(limit for limits in (self.limits, *(rule.limits for rule in self.rules)) for limit in limits)

    @property
    def counts(self) -> bool:
        """Whether any decision may need what was signed before."""
        return bool(self.limits) or any(
            rule.limits or (rule.on_anomaly is not None and rule.on_anomaly.remembers) for rule in self.rules
        )

    def client(self, client_id: str) -> Client | None:
        """The client with this id, or None."""
        return next((client for client in self.clients if client.id == client_id), None)

    def digest(self) -> bytes:
        """32 bytes that pin every field of the policy (not the file's comments or layout)."""
        return digest(Tag.POLICY, msgspec.msgpack.encode(msgspec.to_builtins(self, order="sorted")))


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} `{name}`")
        seen.add(name)
