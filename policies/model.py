"""What a policy file says, and what `decide` sees of a request. See README.md for the file's format."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import msgspec

from policies.approvals import Approvals
from policies.clients import CLIENT_ID_PATTERN as CLIENT_ID_PATTERN
from policies.clients import Algorithm as Algorithm
from policies.clients import Client as Client
from policies.clients import Name as Name
from policies.counters import Counters as Counters
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


class AccessEntry(msgspec.Struct, frozen=True):
    """One entry of an EIP-2930 access list: a 20-byte address and 32-byte storage keys."""

    address: bytes
    storage_keys: tuple[bytes, ...]


class EthereumDecoded(msgspec.Struct, frozen=True, kw_only=True):
    """An unsigned Ethereum transaction. Amounts in wei; `to` is 20 bytes, or empty to create a contract.

    `type`: 0 (legacy with EIP-155's chain id), 1 (EIP-2930) or 2 (EIP-1559). Types 0 and 1 have `gas_price`, type 2 has
    the two `max_…` fees; the others are None. `max_fee` bounds the fee of every type.
    """

    type: int
    chain_id: int
    nonce: int
    gas_price: int | None = None
    max_priority_fee_per_gas: int | None = None
    max_fee_per_gas: int | None = None
    gas_limit: int
    to: bytes
    value: int
    data: bytes
    access_list: tuple[AccessEntry, ...] = ()

    @property
    def max_fee(self) -> int:
        """The most that the transaction can cost in wei, without `value`."""
        price = self.gas_price if self.max_fee_per_gas is None else self.max_fee_per_gas
        return self.gas_limit * (price or 0)


class TypedField(msgspec.Struct, frozen=True):
    """A member of typed data: its name, its type as written, its value.

    A value is a bool, an int, a str, bytes (`bytesN`, `bytes`, `address`), the tuple of a struct's `TypedField`s, or
    the tuple of an array's values.
    """

    name: str
    type: str
    value: Any


class TypedDataDecoded(msgspec.Struct, frozen=True, kw_only=True):
    """Typed data of EIP-712. The domain's fields are None where the document has none.

    `encode_type` names the primary struct and all structs that it refers to, as the contract hashes them.
    """

    primary_type: str
    encode_type: str
    name: str | None
    version: str | None
    chain_id: int | None
    verifying_contract: bytes | None
    salt: bytes | None
    message: tuple[TypedField, ...]


class MessageDecoded(msgspec.Struct, frozen=True):
    """A message and the name of the hash that it is signed under (`policies.requests.MessageHash`)."""

    message: bytes
    hash: str


class BitcoinDecoded(msgspec.Struct, frozen=True):
    """A BIP-143 preimage: one input's amount (satoshi) and script, and *hashes* of all that it pays to.

    `outpoint_txid` is in the order of the wire (explorers show it reversed).
    """

    version: int
    hash_prevouts: bytes
    hash_sequence: bytes
    outpoint_txid: bytes
    outpoint_index: int
    script_code: bytes
    amount: int
    sequence: int
    hash_outputs: bytes
    locktime: int
    sighash_type: int


Decoded = EthereumDecoded | TypedDataDecoded | BitcoinDecoded | MessageDecoded


class Request(msgspec.Struct, frozen=True):
    """What `decide` sees: a request whose client signature has been verified and whose payload was parsed.

    `label` is the key's label: from the body for `create-key`, from the stored key for `sign`. `kind` and
    `decoded` are None where there is nothing to sign or to read; `signatures`: how many of a batch this is.
    `approvers`: the clients whose approvals of it have been verified. `lifetime_s`: for how long it was signed.
    """

    client_id: str
    action: Action
    label: str
    kind: Kind | None = None
    blind: bool = False
    derivation_path: tuple[int, ...] = ()
    decoded: Decoded | None = None
    signatures: int = 1
    approvers: frozenset[str] = frozenset()
    lifetime_s: int = 0


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} `{name}`")
        seen.add(name)
