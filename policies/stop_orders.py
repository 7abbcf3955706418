"""Orders to freeze and unfreeze a signer: what operators sign, and what must hold of it besides the signatures. Pure.

An order is one JSON payload under one compact JWS (RFC 7515) for each operator who signs it; all carry the same
payload. The protected header holds exactly `alg, kid, typ`, so that no order can be read as a client's request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from policies.clients import ALGORITHM_NAMES, Client, Name
from policies.errors import Refused
from policies.globs import check_label_glob
from policies.operators import MAX_OPERATORS
from policies.roster import Name as NetworkName
from policies.signed_requests import SIGNATURE_BYTES, decode_base64url, parse_strictly

TYP: Final = "keymoot-stop"
EVERYTHING = "**"
MAX_PATTERNS = 64
MAX_REASON_CHARS = 200
MAX_JWS_CHARS = 16 * 1024
# An order to unfreeze is passed from one operator to the next.
MAX_ORDER_S = 24 * 3600
CLOCK_SKEW_S = 300

Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=96)]
Patterns = Annotated[tuple[Pattern, ...], msgspec.Meta(min_length=1, max_length=MAX_PATTERNS)]
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=2**47)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class StopOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The payload. `labels`: patterns of the labels that are meant, `**` is everything. `serial`: when it was made, in
    Unix milliseconds; a signer carries orders out in the order of their serials. `expires`: Unix seconds."""

    network: NetworkName
    signer: NetworkName
    action: Literal["freeze", "unfreeze"]
    labels: Patterns
    serial: Milliseconds
    expires: Seconds
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)] = ""

    def __post_init__(self) -> None:
        for pattern in self.labels:
            check_label_glob(pattern)
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a pattern twice")
        if not self.reason.isprintable():
            raise ValueError("reason: printable characters only")

    def check(self, *, network: str, signer: str, after_serial: int, now_s: float) -> None:
        """Whether it is for this signer, and is due. `after_serial`: that of the last order carried out. Raises
        `Refused`."""
        if (self.network, self.signer) != (network, signer):
            raise Refused("stop/signer", f"the order is for signer {self.signer} of network {self.network}")
        if self.serial <= after_serial:
            told = "a later order has been carried out since this one was made: look at its status, make another"
            if (ahead_s := after_serial / 1000 - now_s) > 0:
                # Until then another would be no later either, and somebody may be in a hurry.
                told = f"the last order was made by a clock that is ahead: make another in {int(ahead_s) + 1} s"
                told += ", or stop the enclave itself if it must not sign"
            raise Refused("stop/replayed", told)
        if self.serial > (now_s + CLOCK_SKEW_S) * 1000:
            raise Refused("stop/time", "the order was made in the future: check both clocks")
        if self.expires <= now_s:
            raise Refused("stop/expired", "the order has expired: make another")
        if self.expires * 1000 > self.serial + MAX_ORDER_S * 1000:
            raise Refused("stop/expired", f"an order is good for {MAX_ORDER_S} s at most")


class StopHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The protected header: exactly these members."""

    alg: Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
    kid: Name
    typ: Literal["keymoot-stop"]


@dataclass(frozen=True)
class UnverifiedStop:
    """One operator's JWS taken apart. `signed`: what the signature (64 bytes) must be over."""

    header: StopHeader
    order: StopOrder
    signed: bytes
    signature: bytes

    def check_algorithm(self, operator: Client) -> None:
        """Raises `Refused` where the header names another algorithm than the policy does."""
        if self.header.alg not in ALGORITHM_NAMES[operator.alg]:
            raise Refused("stop/header", f"the policy says {operator.alg.value} for operator {operator.id}")


def split_order(texts: tuple[str, ...]) -> tuple[UnverifiedStop, ...]:
    """The JWS of one order taken apart. Raises `Refused`, and nothing else, also where they are of several orders."""
    if not 1 <= len(texts) <= MAX_OPERATORS:
        raise Refused("stop/jws", f"an order has 1 to {MAX_OPERATORS} signatures")
    if len({text.split(".")[1:2][0] if "." in text else "" for text in texts}) != 1:
        raise Refused("stop/jws", "the signatures are of different orders")
    return tuple(_split(text) for text in texts)


def _split(text: str) -> UnverifiedStop:
    parts = text.split(".")
    if len(parts) != 3 or len(text) > MAX_JWS_CHARS:
        raise Refused("stop/jws", "not a compact JWS: header, payload, signature")
    header = parse_strictly(decode_base64url(parts[0], "stop/jws"), StopHeader, "stop/header")
    order = parse_strictly(decode_base64url(parts[1], "stop/jws"), StopOrder, "stop/order")
    signature = decode_base64url(parts[2], "stop/jws")
    if len(signature) != SIGNATURE_BYTES:
        raise Refused("stop/jws", f"a signature of {len(signature)} bytes, not {SIGNATURE_BYTES}")
    return UnverifiedStop(header, order, f"{parts[0]}.{parts[1]}".encode(), signature)
