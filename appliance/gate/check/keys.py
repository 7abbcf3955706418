"""The webhook keys of a signer that is played: what signs its questions, what verifies a handler's answers.

`v1` is HMAC-SHA256, `v1a` is Ed25519, both over `id.timestamp.body` (Standard Webhooks). As strict as the enclave.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass

import msgspec

from policies.errors import CallerError
from policies.json_strict import JsonInvalid, parse_json

HMAC, ED25519 = "v1", "v1a"
LEAST_SECRET_BYTES, MOST_SECRET_BYTES, SEED_BYTES = 24, 64, 32


class SecretsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signer's half of the secrets, as `keymoot gate secret` reads it. `…_hmac`: `whsec_`; `request_ed25519`:
    `whsk_`, the signer's own key; `answer_ed25519`: `whpk_`, the handler's. The older ones only while rotating."""

    request_hmac: str | None = None
    answer_hmac: str | None = None
    older_request_hmac: str | None = None
    older_answer_hmac: str | None = None
    request_ed25519: str | None = None
    answer_ed25519: str | None = None
    older_request_ed25519: str | None = None
    older_answer_ed25519: str | None = None

    def __repr__(self) -> str:
        return "SecretsFile(…)"


@dataclass(frozen=True, repr=False)
class Key:
    """One key. `version`: of its signatures. `value`: of HMAC the secret, of Ed25519 a seed or a point."""

    version: str
    value: bytes

    def sign(self, content: bytes) -> str:
        """`version,<base64>`."""
        if self.version == HMAC:
            made = hmac.digest(self.value, content, "sha256")
        else:
            from nacl.signing import SigningKey

            made = SigningKey(self.value).sign(content).signature
        return f"{self.version},{base64.b64encode(made).decode()}"

    def verifies(self, content: bytes, encoded: str) -> bool:
        """Whether `encoded`, canonical base64, is this key's signature of `content`."""
        if self.version == HMAC:
            return hmac.compare_digest(self.sign(content), f"{HMAC},{encoded}")
        from nacl.exceptions import BadSignatureError
        from nacl.signing import VerifyKey

        try:
            VerifyKey(self.value).verify(content, _decode(encoded))
        except (BadSignatureError, ValueError, TypeError):
            return False
        return True


@dataclass(frozen=True, repr=False)
class Keys:
    """`asks` sign questions, `answers` verify answers; newest first."""

    asks: tuple[Key, ...]
    answers: tuple[Key, ...]


def header_of(keys: tuple[Key, ...], webhook_id: str, timestamp: str, body: bytes) -> str:
    """The header `webhook-signature`: one signature of each key."""
    content = content_of(webhook_id, timestamp, body)
    return " ".join(key.sign(content) for key in keys)


def signed_by(keys: tuple[Key, ...], webhook_id: str, timestamp: str, header: str, body: bytes) -> bool:
    """Whether one of the signatures in `header` is by one of `keys`."""
    content = content_of(webhook_id, timestamp, body)
    for signature in header.split(" "):
        version, _, encoded = signature.partition(",")
        if any(key.version == version and key.verifies(content, encoded) for key in keys):
            return True
    return False


def content_of(webhook_id: str, timestamp: str, body: bytes) -> bytes:
    """What a signature is over."""
    return f"{webhook_id}.{timestamp}.".encode() + body


def parse_keys(data: bytes) -> Keys:
    """The keys of a secrets file. Raises `CallerError`, which never quotes them."""
    try:
        parse_json(data)
        file = msgspec.json.decode(data, type=SecretsFile)
    except (JsonInvalid, msgspec.DecodeError):
        raise CallerError('gate secrets must be JSON: {"request_hmac": "whsec_…", "answer_hmac": "whsec_…"}') from None
    asks = [
        *(_key(HMAC, text, "whsec_") for text in (file.request_hmac, file.older_request_hmac) if text),
        *(_key(ED25519, text, "whsk_") for text in (file.request_ed25519, file.older_request_ed25519) if text),
    ]
    answers = [
        *(_key(HMAC, text, "whsec_") for text in (file.answer_hmac, file.older_answer_hmac) if text),
        *(_key(ED25519, text, "whpk_") for text in (file.answer_ed25519, file.older_answer_ed25519) if text),
    ]
    if not asks or not answers:
        raise CallerError("gate secrets need a key for each direction: request_hmac and answer_hmac")
    if {key.value for key in asks} & {key.value for key in answers}:
        raise CallerError("the two directions need different secrets")
    return Keys(tuple(asks), tuple(answers))


def _key(version: str, text: str, prefix: str) -> Key:
    if not text.startswith(prefix):
        half = "" if prefix == "whsec_" else ": the signer's half is asked for (keymoot gate trial-secrets)"
        raise CallerError(f"a gate secret that should start with {prefix} does not{half}")
    try:
        value = _decode(text.removeprefix(prefix))
    except ValueError:
        raise CallerError(f"a gate secret {prefix}… is not canonical base64") from None
    if version == HMAC:
        if not LEAST_SECRET_BYTES <= len(value) <= MOST_SECRET_BYTES:
            raise CallerError(f"a gate secret whsec_… has {LEAST_SECRET_BYTES} to {MOST_SECRET_BYTES} bytes")
        return Key(version, value)
    # A private key may be followed by its public half.
    if len(value) != SEED_BYTES and not (prefix == "whsk_" and len(value) == 2 * SEED_BYTES):
        raise CallerError(f"a gate secret {prefix}… has {SEED_BYTES} bytes")
    return Key(version, value[:SEED_BYTES])


def _decode(text: str) -> bytes:
    """Canonical base64. Raises `ValueError`."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical base64")
    return data
