"""The 32 bytes that a signing request asks to have signed, worked out from the body alone."""

from __future__ import annotations

from appliance.api.signatures import what_is_signed
from policies.requests import SigningBody


def message_hash(body: SigningBody) -> bytes:
    """The hash for `body`, 32 bytes. The enclaves parse what is hashed; here it only has to match theirs."""
    return what_is_signed(body)
