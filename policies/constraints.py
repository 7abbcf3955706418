"""What a rule says about decoded payloads, a struct for each kind. How each is checked: `policies.rules`.

Lists are written out, `any` where all are meant; the limits on amounts may be left out. Nothing here widens a rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from functools import cached_property
from typing import Annotated

import msgspec

from policies.addresses import ANY, NEW_CONTRACT, Places, PlaceSet, wrong_places
from policies.amounts import MAX_DECIMALS, SATOSHI, WEI, Amount, parse_amount
from policies.erc20 import SELECTORS, Erc20Method
from policies.methods import ANY_DATA, MAX_SIGNATURE, NO_DATA, check_method, selector_of
from policies.mistakes import Mistake, refuse, wrong, wrong_items
from policies.requests import MessageHash

MAX_METHODS = 256
MAX_CHAINS = 64

Chains = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)], ...], msgspec.Meta(min_length=1, max_length=MAX_CHAINS)
]
Methods = Annotated[
    tuple[Annotated[str, msgspec.Meta(max_length=MAX_SIGNATURE)], ...], msgspec.Meta(max_length=MAX_METHODS)
]


class Erc20Constraints(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Of calls of ERC-20 tokens: who gets tokens or may spend them, whose they are, how many.

    `senders`: whose tokens `transferFrom` may move; needed where the rule permits `transferFrom`. `max_amount`: in the
    token's smallest unit, or such as `2500.50 tokens` where `decimals` says how many the token has.
    """

    recipients: Places
    senders: Places | None = None
    max_amount: Amount | None = None
    decimals: Annotated[int, msgspec.Meta(ge=0, le=MAX_DECIMALS)] | None = None

    def __post_init__(self) -> None:
        refuse(
            [
                *wrong_places(self.recipients, (ANY,), "recipients"),
                *wrong_places(self.senders or (), (ANY,), "senders"),
                *wrong(lambda: self.most, "max_amount"),
            ]
        )

    @cached_property
    def most(self) -> int | None:
        """`max_amount` in the token's smallest unit."""
        units = {"units": 0} if self.decimals is None else {"units": 0, "tokens": self.decimals}
        return None if self.max_amount is None else parse_amount(self.max_amount, units)

    @cached_property
    def recipient_set(self) -> PlaceSet:
        """`recipients`, ready to be asked."""
        return PlaceSet(self.recipients)

    @cached_property
    def sender_set(self) -> PlaceSet:
        """`senders`, ready to be asked."""
        return PlaceSet(self.senders or ())


class EthereumConstraints(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Of Ethereum transactions. `to`: addresses, names of lists, `any`, `new-contract`. `methods`: what a call's data
    may begin with, `none` for a plain transfer, `any`; data that creates a contract has no method.

    `max_value`, `max_fee` (gas limit times the highest price): in wei, or such as `1.5 ether`. Neither limits tokens:
    `erc20` does, with `methods` that are all among its three.
    """

    chains: Chains
    to: Places
    methods: Methods
    max_value: Amount | None = None
    max_fee: Amount | None = None
    erc20: Erc20Constraints | None = None

    def __post_init__(self) -> None:
        mistakes = [
            *wrong_places(self.to, (ANY, NEW_CONTRACT), "to"),
            *wrong_items(check_method, self.methods, "methods"),
            *wrong(lambda: self.most_value, "max_value"),
            *wrong(lambda: self.most_fee, "max_fee"),
        ]
        if not self.methods and self.to != (NEW_CONTRACT,):
            told = "no `methods` permit no call: write `none` for plain transfers, `any` for all"
            mistakes.append(Mistake(told, "methods"))
        refuse(mistakes)
        if self.erc20 is not None:
            refuse(self._mistakes_of(self.erc20))

    def _mistakes_of(self, erc20: Erc20Constraints) -> Iterator[Mistake]:
        for number, method in enumerate(self.methods):
            if method in (NO_DATA, ANY_DATA) or selector_of(method) not in SELECTORS:
                known = ", ".join(f"`{method}`" for method in Erc20Method)
                yield Mistake(f"with `erc20` the methods are some of {known}: `{method}` is not", "methods", number)
        for number, place in enumerate(self.to):
            if place in (ANY, NEW_CONTRACT):
                yield Mistake(f"with `erc20`, `to` lists the tokens' contracts: `{place}` is none", "to", number)
        moves_others = Erc20Method.TRANSFER_FROM in {SELECTORS[selector] for selector in self.selectors}
        if moves_others and erc20.senders is None:
            yield Mistake("`transferFrom` needs `senders`: whose tokens may be moved", "erc20")
        if not moves_others and erc20.senders is not None:
            yield Mistake("`senders` are for `transferFrom`, which is not among the `methods`", "erc20", "senders")

    @cached_property
    def most_value(self) -> int | None:
        """`max_value` in wei."""
        return None if self.max_value is None else parse_amount(self.max_value, WEI)

    @cached_property
    def most_fee(self) -> int | None:
        """`max_fee` in wei."""
        return None if self.max_fee is None else parse_amount(self.max_fee, WEI)

    @cached_property
    def to_set(self) -> PlaceSet:
        """`to`, ready to be asked."""
        return PlaceSet(self.to)

    @cached_property
    def selectors(self) -> frozenset[bytes]:
        """4 bytes of each method that is named."""
        return frozenset(selector_of(method) for method in self.methods if method not in (NO_DATA, ANY_DATA))


class TypedDataConstraints(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Of typed data: its domain's chain and contract, and the primary type. A domain that lacks one fits none."""

    chains: Chains
    verifying_contracts: Places
    primary_types: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=64)], ...], msgspec.Meta(min_length=1, max_length=64)
    ]

    def __post_init__(self) -> None:
        refuse(wrong_places(self.verifying_contracts, (ANY,), "verifying_contracts"))

    @cached_property
    def contract_set(self) -> PlaceSet:
        """`verifying_contracts`, ready to be asked."""
        return PlaceSet(self.verifying_contracts)


class SighashType(StrEnum):
    """What an input's signature covers: which outputs, and whether the other inputs too."""

    ALL = "ALL"
    NONE = "NONE"
    SINGLE = "SINGLE"
    ALL_ANYONECANPAY = "ALL|ANYONECANPAY"
    NONE_ANYONECANPAY = "NONE|ANYONECANPAY"
    SINGLE_ANYONECANPAY = "SINGLE|ANYONECANPAY"


SIGHASH_TYPES = {
    0x01: SighashType.ALL,
    0x02: SighashType.NONE,
    0x03: SighashType.SINGLE,
    0x81: SighashType.ALL_ANYONECANPAY,
    0x82: SighashType.NONE_ANYONECANPAY,
    0x83: SighashType.SINGLE_ANYONECANPAY,
}


class BitcoinConstraints(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Of Bitcoin's inputs (BIP-143): the type of signature, and the amount of the input that is spent.

    Who is paid, and how much, cannot be limited here: the preimage holds the outputs' hash alone.
    """

    sighash_types: Annotated[tuple[SighashType, ...], msgspec.Meta(min_length=1, max_length=len(SighashType))]
    max_amount: Amount | None = None

    def __post_init__(self) -> None:
        refuse(wrong(lambda: self.most, "max_amount"))

    @cached_property
    def most(self) -> int | None:
        """`max_amount` in satoshi."""
        return None if self.max_amount is None else parse_amount(self.max_amount, SATOSHI)


class MessageConstraints(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of messages: the hashes that they may be signed under."""

    hashes: Annotated[tuple[MessageHash, ...], msgspec.Meta(min_length=1, max_length=len(MessageHash))]
