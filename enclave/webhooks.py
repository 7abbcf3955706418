"""Standard Webhooks signatures (v1, HMAC-SHA256), strictly: what signs the gate's requests and verifies its answers.

Source: the Standard Webhooks specification. The signed content is `id.timestamp.body`; a header holds up to
`MAX_SIGNATURES` space-separated `v1,<base64>`; unknown versions in it are passed over, as the specification says.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Sequence

from enclave.errors import CallerError
from enclave.secret import Secret

PREFIX = "whsec_"
LEAST_KEY_BYTES, MOST_KEY_BYTES = 24, 64
TOLERANCE_S = 300
MAX_SIGNATURES = 16
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}")


class WebhookInvalid(CallerError):
    """A message that is not signed by any of the keys, now."""


def parse_key(text: str) -> Secret:
    """The key behind `whsec_<base64>`, 24 to 64 bytes. Raises `CallerError`, which never quotes it."""
    if not text.startswith(PREFIX):
        raise CallerError(f"a webhook secret starts with {PREFIX}")
    try:
        key = _decode(text.removeprefix(PREFIX))
    except ValueError:
        raise CallerError("a webhook secret is not canonical base64") from None
    if not LEAST_KEY_BYTES <= len(key) <= MOST_KEY_BYTES:
        raise CallerError(f"a webhook secret has {LEAST_KEY_BYTES} to {MOST_KEY_BYTES} bytes, not {len(key)}")
    return Secret(key)


def sign(keys: Sequence[Secret], webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """The `webhook-signature` header: one `v1` signature for each key (several while rotating)."""
    return " ".join("v1," + base64.b64encode(_mac(key, webhook_id, str(timestamp_s), body)).decode() for key in keys)


def verify(keys: Sequence[Secret], webhook_id: str, timestamp: str, header: str, body: bytes, now_s: int) -> None:
    """Raises `WebhookInvalid` unless one of the header's signatures is by one of the keys, and fresh."""
    if not _ID.fullmatch(webhook_id):
        raise WebhookInvalid("webhook-id is missing or malformed")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise WebhookInvalid("webhook-timestamp is missing or malformed")
    if abs(int(timestamp) - now_s) > TOLERANCE_S:
        raise WebhookInvalid(f"webhook-timestamp is more than {TOLERANCE_S} s off: check both clocks")
    given = header.split(" ")
    if len(given) > MAX_SIGNATURES:
        raise WebhookInvalid(f"more than {MAX_SIGNATURES} signatures")
    expected = [_mac(key, webhook_id, timestamp, body) for key in keys]
    for signature in given:
        version, _, encoded = signature.partition(",")
        if version != "v1":
            continue
        try:
            found = _decode(encoded)
        except ValueError:
            raise WebhookInvalid("webhook-signature is not canonical base64") from None
        # Every key is compared, so that the time taken does not say which one fits.
        matches = [hmac.compare_digest(found, mac) for mac in expected]
        if any(matches):
            return
    raise WebhookInvalid("webhook-signature does not verify")


def _mac(key: Secret, webhook_id: str, timestamp: str, body: bytes) -> bytes:
    return hmac.digest(key.reveal(), f"{webhook_id}.{timestamp}.".encode() + body, "sha256")


def _decode(text: str) -> bytes:
    """Canonical base64. Raises `ValueError`."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical base64")
    return data
