"""How an operator signs an order to freeze or unfreeze a signer."""

from __future__ import annotations

import msgspec

from appliance.api.jws import ClientKey, base64url
from policies.errors import CallerError, Refused
from policies.stop_orders import TYP, StopHeader, StopOrder, UnverifiedStop, split_order


def sign_order(key: ClientKey, order: StopOrder) -> str:
    """The order under one operator's signature: a compact JWS."""
    return _sign(key, base64url(msgspec.json.encode(order)))


def countersign(key: ClientKey, signatures: tuple[str, ...]) -> tuple[str, ...]:
    """`signatures` of an order, and one more. Raises `CallerError` for what is no order, or has the signature of `key`
    already."""
    if any(part.header.kid == key.kid for part in parse_order(signatures)):
        raise CallerError(f"operator {key.kid} has signed this order already")
    return (*signatures, _sign(key, signatures[0].split(".")[1]))


def parse_order(signatures: tuple[str, ...]) -> tuple[UnverifiedStop, ...]:
    """What is ordered and who signed it, unverified. Raises `CallerError`."""
    try:
        return split_order(signatures)
    except Refused as refusal:
        raise CallerError(f"not an order: {refusal.reason}") from None


def _sign(key: ClientKey, payload: str) -> str:
    header = base64url(msgspec.json.encode(StopHeader(key.algorithm, key.kid, TYP)))
    signed = f"{header}.{payload}"
    return f"{signed}.{base64url(key.sign(signed.encode()))}"
