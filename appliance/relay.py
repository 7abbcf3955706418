"""What travels between a signer and a coordinator on the two WebSockets (control and bulk), as binary messages.

Each WebSocket message is one canonical wire encoding (`enclave.wire.encode`) of `Up` or `Down`, or `Several` of them:
under load most of what a message costs is its send and the wake-up of its receiver. The first `Up` on
each connection is `Announce`. Orders and the frames of one ceremony use the same connection, so that an order is
always seen before the frames that follow from it: presigning on bulk, everything else on control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from enclave.wire import (
    MAX_PEER_FRAME_BYTES,
    Attached,
    Count,
    Freezes,
    OrderBody,
    PolicyTold,
    ReportBody,
    SignedAcknowledgement,
    Wire,
    decode,
    encode,
)
from policies.roster import Index

CONTROL_PATH = "/v1/signers/control"
BULK_PATH = "/v1/signers/bulk"
HEARTBEAT_S = 5.0
CONDITION_S = 2.0
KEYS_A_PAGE = 64
JOINED_MESSAGES = 64
JOINED_BYTES = 64 * 1024
MAX_WEBSOCKET_BYTES = JOINED_BYTES + MAX_PEER_FRAME_BYTES + 64 * 1024

FrameBytes = Annotated[bytes, msgspec.Meta(max_length=MAX_PEER_FRAME_BYTES)]


class Announce(Wire, frozen=True, tag=1):
    """Signer → coordinator, first: who is here, as its enclave says."""

    signer_version: Annotated[str, msgspec.Meta(max_length=64)]
    enclave: Attached


class Forward(Wire, frozen=True, tag=2):
    """Signer → coordinator: pass `data` to `receiver`."""

    receiver: Index
    data: FrameBytes


class ReportUp(Wire, frozen=True, tag=3):
    """Signer → coordinator: the enclave's report."""

    body: ReportBody


class Condition(Wire, frozen=True, tag=4):
    """Signer → coordinator, on the control connection, every `CONDITION_S` seconds: how it finds its enclave and gate.

    `enclave`: the state the enclave says (`wire.Status`), `silent` where it did not answer in time. `reason`: why it
    is not `ready`. `gate`: whether the operator's handler answered the last call; `unknown` before the first one.
    `policy`: the one in force, None where the enclave is silent; `freezes`: what it is frozen for. `clock_s`: its
    host's clock, Unix time. It is shown to operators; nothing is decided by it.
    """

    enclave: Annotated[str, msgspec.Meta(pattern=r"^(ready|waiting|hsm-away|silent)$(?!\n)")]
    reason: Annotated[str, msgspec.Meta(max_length=512)]
    gate: Annotated[str, msgspec.Meta(pattern=r"^(unknown|answers|unreachable)$(?!\n)")]
    policy: PolicyTold | None = None
    freezes: Freezes = ()
    clock_s: Count = 0


class NumberedKey(Wire, frozen=True):
    """A key's certificate, and its number at this signer: they grow in the order in which it came to know them."""

    seq: Count
    certificate: Annotated[tuple[SignedAcknowledgement, ...], msgspec.Meta(min_length=3, max_length=16)]


class KeyPage(Wire, frozen=True, tag=5):
    """Signer → coordinator, answer to `KeysAfter`: the next keys after number `after`, all of one page. `more`: there
    are others behind them. `after` is 0 where the coordinator asked for what this signer's store does not know."""

    after: Count
    keys: Annotated[tuple[NumberedKey, ...], msgspec.Meta(max_length=KEYS_A_PAGE)]
    more: bool


class KeyAdded(Wire, frozen=True, tag=6):
    """Signer → coordinator: there is a key that was made through another coordinator. Ask for it."""


Up = Announce | Forward | ReportUp | Condition | KeyPage | KeyAdded


class Online(Wire, frozen=True, tag=1):
    """Coordinator → signer: the signers that are connected to this coordinator on both connections now."""

    indices: Annotated[tuple[Index, ...], msgspec.Meta(max_length=16)]


class Deliver(Wire, frozen=True, tag=2):
    """Coordinator → signer: a frame from `sender` (as its connection says)."""

    sender: Index
    data: FrameBytes


class OrderDown(Wire, frozen=True, tag=3):
    """Coordinator → signer: an order for the enclave."""

    body: OrderBody


class KeysAfter(Wire, frozen=True, tag=4):
    """Coordinator → signer: asks for a page of certificates. `after`, `key_id`: number and id of the last key that it
    has from this signer, 0 and empty for none. One question at a time. Answer: `KeyPage`."""

    after: Count
    key_id: Annotated[str, msgspec.Meta(max_length=64)]


Down = Online | Deliver | OrderDown | KeysAfter


class Several(Wire, frozen=True, tag=15):
    """Both ways: messages of one connection in their order, each encoded by itself."""

    messages: Annotated[tuple[FrameBytes, ...], msgspec.Meta(min_length=2, max_length=JOINED_MESSAGES)]


# What one WebSocket message is of each way; made once, since a union is looked up by comparing all of its types.
_IN_ONE: dict[Any, Any] = {Up: Up | Several, Down: Down | Several}


def join(encoded: Sequence[bytes]) -> bytes:
    """One WebSocket message of encoded ones: at least one, at most `JOINED_MESSAGES`."""
    return encoded[0] if len(encoded) == 1 else encode(Several(tuple(encoded)))


def split(data: bytes, kind: Any) -> list[Any]:
    """The messages of `kind` (`Up` or `Down`) in one WebSocket message. Raises `Malformed`, and then none is given."""
    first = decode(data, _IN_ONE[kind])
    return [decode(one, kind) for one in first.messages] if isinstance(first, Several) else [first]
