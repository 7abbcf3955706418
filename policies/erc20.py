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
_PADDING_BYTES = WORD_BYTES - ADDRESS_BYTES


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
_WORDS = {Erc20Method.TRANSFER: 2, Erc20Method.TRANSFER_FROM: 3, Erc20Method.APPROVE: 2}


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
    if method is None or len(data) != 4 + WORD_BYTES * _WORDS[method]:
        return None
    words = [data[at : at + WORD_BYTES] for at in range(4, len(data), WORD_BYTES)]
    if any(word[:_PADDING_BYTES] != bytes(_PADDING_BYTES) for word in words[:-1]):
        return None
    *senders, recipient = (word[_PADDING_BYTES:] for word in words[:-1])
    return Erc20Call(method, senders[0] if senders else None, recipient, int.from_bytes(words[-1], "big"))


def encode_call(call: Erc20Call) -> bytes:
    """The `data` that `decode_call` reads as `call`."""
    selector = next(selector for selector, method in SELECTORS.items() if method is call.method)
    addresses = [call.recipient] if call.sender is None else [call.sender, call.recipient]
    words = [*(one.rjust(WORD_BYTES, b"\0") for one in addresses), call.amount.to_bytes(WORD_BYTES, "big")]
    return selector + b"".join(words)
