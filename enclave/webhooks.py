"""Standard Webhooks signatures, strictly: what signs the gate's requests and verifies its answers.

`v1` is HMAC-SHA256, `v1a` is Ed25519. Source: the Standard Webhooks specification. The signed content is
`id.timestamp.body`; a header holds up to `MAX_SIGNATURES` space-separated `version,<base64>`. Only versions of which a
key is held count, the others are passed over: who holds none but Ed25519 keys can't be brought down to HMAC.
"""

from __future__ import annotations

import binascii
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

import nacl.bindings

from enclave.crypto import ed25519
from enclave.errors import CallerError
from enclave.secret import Secret

HMAC_PREFIX, PRIVATE_PREFIX, PUBLIC_PREFIX = "whsec_", "whsk_", "whpk_"
HMAC_VERSION, ED25519_VERSION = "v1", "v1a"
LEAST_KEY_BYTES, MOST_KEY_BYTES = 24, 64
SEED_BYTES, POINT_BYTES = 32, 32
TOLERANCE_S = 300
MAX_SIGNATURES = 16
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}")


class WebhookInvalid(CallerError):
    """A message that is not signed by any of the keys, now. `code`: `unsigned`, `stale` or `signature`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, repr=False)
class PrivateKey:
    """An Ed25519 key that signs. `pair`: seed and point, 64 bytes."""

    pair: Secret

    @property
    def public(self) -> PublicKey:
        """What verifies its signatures."""
        return PublicKey(self.pair.reveal()[SEED_BYTES:])


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 key that verifies: 32 bytes."""

    point: bytes


SigningKey = Secret | PrivateKey
VerifyingKey = Secret | PublicKey
"""A `Secret` is a key for HMAC."""


def parse_key(text: str) -> Secret:
    """The HMAC key behind `whsec_<base64>`, 24 to 64 bytes. Raises `CallerError`, which never quotes it."""
    key = _parse(text, HMAC_PREFIX, "secret")
    if not LEAST_KEY_BYTES <= len(key) <= MOST_KEY_BYTES:
        raise CallerError(f"a webhook secret has {LEAST_KEY_BYTES} to {MOST_KEY_BYTES} bytes, not {len(key)}")
    return Secret(key)


def parse_private_key(text: str) -> PrivateKey:
    """The Ed25519 key behind `whsk_<base64>`: its seed, 32 bytes, or seed and point, 64. Raises as `parse_key`."""
    key = _parse(text, PRIVATE_PREFIX, "private key")
    if len(key) not in (SEED_BYTES, SEED_BYTES + POINT_BYTES):
        raise CallerError(f"a webhook private key has 32 or 64 bytes, not {len(key)}")
    point, pair = nacl.bindings.crypto_sign_seed_keypair(key[:SEED_BYTES])
    if len(key) != SEED_BYTES and key[SEED_BYTES:] != point:
        raise CallerError("the two halves of a webhook private key do not belong together")
    return PrivateKey(Secret(pair))


def parse_public_key(text: str) -> PublicKey:
    """The Ed25519 key behind `whpk_<base64>`, 32 bytes. Raises as `parse_key`."""
    key = _parse(text, PUBLIC_PREFIX, "public key")
    if len(key) != POINT_BYTES or not nacl.bindings.crypto_core_ed25519_is_valid_point(key):
        raise CallerError("a webhook public key is 32 bytes, a point of Ed25519")
    return PublicKey(key)


def sign(keys: Sequence[SigningKey], webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """The `webhook-signature` header: one signature for each key (several while rotating)."""
    content = _content(webhook_id, str(timestamp_s), body)
    return " ".join([_signature(key, content) for key in keys])


def verify(keys: Sequence[VerifyingKey], webhook_id: str, timestamp: str, header: str, body: bytes, now_s: int) -> None:
    """Raises `WebhookInvalid` unless one of the header's signatures is by one of the keys, and fresh."""
    if not _ID.fullmatch(webhook_id):
        raise WebhookInvalid("unsigned", "webhook-id is missing or malformed")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise WebhookInvalid("unsigned", "webhook-timestamp is missing or malformed")
    if abs(int(timestamp) - now_s) > TOLERANCE_S:
        raise WebhookInvalid("stale", f"webhook-timestamp is more than {TOLERANCE_S} s off: check both clocks")
    given = header.split(" ")
    if len(given) > MAX_SIGNATURES:
        raise WebhookInvalid("unsigned", f"more than {MAX_SIGNATURES} signatures")
    content = _content(webhook_id, timestamp, body)
    macs, points = [], []
    for key in keys:
        if isinstance(key, Secret):
            macs.append(hmac.digest(key.reveal(), content, "sha256"))
        else:
            points.append(key.point)
    for signature in given:
        version, _, encoded = signature.partition(",")
        if version == HMAC_VERSION and macs:
            # Every key is compared, so that the time taken does not say which one fits.
            made = _decoded(encoded)
            matches = [hmac.compare_digest(made, mac) for mac in macs]
            fits = any(matches)
        elif version == ED25519_VERSION and points:
            made = _decoded(encoded)
            fits = any(ed25519.verifies(point, content, made) for point in points)
        else:
            continue
        if fits:
            return
    raise WebhookInvalid("signature", "webhook-signature does not verify")


def _parse(text: str, prefix: str, what: str) -> bytes:
    if not text.startswith(prefix):
        raise CallerError(f"a webhook {what} starts with {prefix}")
    try:
        return _decode(text.removeprefix(prefix))
    except ValueError:
        raise CallerError(f"a webhook {what} is not canonical base64") from None


def _content(webhook_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{webhook_id}.{timestamp}.".encode() + body


def _signature(key: SigningKey, content: bytes) -> str:
    if isinstance(key, Secret):
        version, made = HMAC_VERSION, hmac.digest(key.reveal(), content, "sha256")
    else:
        version, made = ED25519_VERSION, ed25519.sign(key.pair.reveal(), content)
    return f"{version},{_encode(made)}"


def _decoded(text: str) -> bytes:
    try:
        return _decode(text)
    except ValueError:
        raise WebhookInvalid("signature", "webhook-signature is not canonical base64") from None


def _encode(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _decode(text: str) -> bytes:
    """Canonical base64. Raises `ValueError`."""
    data = binascii.a2b_base64(text)
    # The decoder passes over what is not of its alphabet.
    if _encode(data) != text:
        raise ValueError("not canonical base64")
    return data
