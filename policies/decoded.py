"""What the bytes to be signed say, once parsed: for rules to decide on and for the gate to see."""

from __future__ import annotations

from typing import Any

import msgspec


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
