"""The reference handler's keys: verify what the enclave asks, sign what is answered.

HMAC is the `standardwebhooks` package's. That has no Ed25519 (`v1a`): it is here.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import nacl.exceptions
import nacl.signing
import structlog
from standardwebhooks import Webhook, WebhookVerificationError

from appliance.gate.config import GateSecrets, load_secrets
from policies.errors import CallerError

TOLERANCE_S = 300
SIGNED_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")

log = structlog.get_logger()


class HandlerKeys:
    """One key, or one of each kind, for each direction. Where the enclave's Ed25519 key is known, only that counts."""

    def __init__(self, secrets: GateSecrets) -> None:
        self._asks = Webhook(secrets.request_hmac) if secrets.request_hmac else None
        self._answers = Webhook(secrets.answer_hmac) if secrets.answer_hmac else None
        public, private = secrets.request_ed25519, secrets.answer_ed25519
        self._public = nacl.signing.VerifyKey(_bytes(public)) if public else None
        self._private = nacl.signing.SigningKey(_bytes(private)[:32]) if private else None

    def verify(self, body: str, headers: Mapping[str, str]) -> Any:
        """The question. Raises `WebhookVerificationError`, `ValueError` or `KeyError` for what the enclave didn't sign
        now."""
        if self._public is None:
            if self._asks is None:
                raise ValueError("no key for requests")
            return self._asks.verify(body, {name: headers[name] for name in SIGNED_HEADERS})
        webhook_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
        if abs(int(timestamp) - datetime.datetime.now(datetime.UTC).timestamp()) > TOLERANCE_S:
            raise WebhookVerificationError("stale")
        for signature in headers["webhook-signature"].split(" ")[:16]:
            version, _, encoded = signature.partition(",")
            if version != "v1a":
                continue
            try:
                self._public.verify(f"{webhook_id}.{timestamp}.{body}".encode(), base64.b64decode(encoded))
            except (nacl.exceptions.CryptoError, nacl.exceptions.ValueError, binascii.Error):
                continue
            return json.loads(body)
        raise WebhookVerificationError("no signature by the enclave's key")

    def sign(self, webhook_id: str, now: datetime.datetime, body: str) -> str:
        """The header of an answer: one signature of each kind that there is a key for."""
        made = [self._answers.sign(webhook_id, now, body)] if self._answers is not None else []
        if self._private is not None:
            content = f"{webhook_id}.{int(now.timestamp())}.{body}".encode()
            made.append("v1a," + base64.b64encode(self._private.sign(content).signature).decode())
        return " ".join(made)


class KeysFile:
    """The keys in the file as it is now. Raises `CallerError` at first; later, what cannot be used changes nothing."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._seen = _stamp(path)
        self._keys = HandlerKeys(load_secrets(path))

    def current(self) -> HandlerKeys:
        """Looked up for each question, so that new secrets count at once."""
        stamp = _stamp(self._path)
        if stamp not in (self._seen, None):
            self._seen = stamp
            try:
                self._keys = HandlerKeys(load_secrets(self._path))
            except CallerError as error:
                log.error("gate-secrets-not-reloaded", reason=str(error))
            else:
                log.info("gate-secrets-reloaded")
        return self._keys


def _stamp(path: pathlib.Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.partition("_")[2])
