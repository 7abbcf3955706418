"""Calls of ERC-20 tokens, decoded strictly: exactly the words of the method, addresses with nothing above them.

Contracts ignore what stands behind the arguments, and old ones what stands above an address. Here neither passes, so
that nobody reads a call in two ways. A selector says nothing of the contract: `transferFrom` and `approve` of a
collectible (ERC-721) look the same, and their amount is the number of a piece.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

WORD_BYTES = 32
ADDRESS_BYTES = 20


class Erc20Method(StrEnum):
    """What is decoded, by signature."""

    TRANSFER = "transfer(address,uint256)"
    TRANSFER_FROM = "transferFrom(address,address,uint256)"
    APPROVE = "approve(address,uint256)"


SELECTORS = {
    bytes.fromhex("a9059cbb"): Erc20Method.TRANSFER,
    bytes.fromhex("23b872dd"): Erc20Method.TRANSFER_FROM,
    bytes.fromhex("095ea7b3"): Erc20Method.APPROVE,
}


class Erc20Call(msgspec.Struct, frozen=True):
    """`sender`: whose tokens `transferFrom` moves, else None. `recipient` gets `amount` (in the token's smallest unit),
    or with `approve` may spend as much."""

    method: Erc20Method
    sender: bytes | None
    recipient: bytes
    amount: int


def decode_call(data: bytes) -> Erc20Call | None:
    """The call in a transaction's `data`; None where it is no call of these, or not exactly one."""
    method = SELECTORS.get(data[:4])
    if method is None:
        return None
    words = [data[at : at + WORD_BYTES] for at in range(4, len(data), WORD_BYTES)]
    addresses = [_address(word) for word in words[:-1]]
    if len(words) != (3 if method is Erc20Method.TRANSFER_FROM else 2) or len(words[-1]) != WORD_BYTES:
        return None
    if any(address is None for address in addresses):
        return None
    sender = addresses[0] if method is Erc20Method.TRANSFER_FROM else None
    recipient = addresses[-1]
    return None if recipient is None else Erc20Call(method, sender, recipient, int.from_bytes(words[-1], "big"))


def encode_call(call: Erc20Call) -> bytes:
    """The `data` that `decode_call` reads as `call`."""
    selector = next(selector for selector, method in SELECTORS.items() if method is call.method)
    addresses = [call.recipient] if call.sender is None else [call.sender, call.recipient]
    words = [*(one.rjust(WORD_BYTES, b"\0") for one in addresses), call.amount.to_bytes(WORD_BYTES, "big")]
    return selector + b"".join(words)


def _address(word: bytes) -> bytes | None:
    padding = WORD_BYTES - ADDRESS_BYTES
    return word[padding:] if word[:padding] == bytes(padding) else None
