"""Sealed records: their format, what is bound into them, and the software half of sealing.

A record's payload is encrypted under a share-encryption key of its own; only that key is sealed by the HSM
(profiles.py). The payload is bound to what the record is, the sealed key also to how it is sealed: so a new
HSM key means sealing 32 bytes anew and touches no share.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave.errors import Malformed
from enclave.hsm.errors import SealBroken
from enclave.secret import Secret
from enclave.wire import Wire, decode, encode
from policies.errors import CallerError
from policies.transcript import Tag, encode_parts

RECORD_FORMAT: Final = 1
MAX_PLAINTEXT_BYTES: Final = 60 * 1024
# What an operator does about a record that does not open.
REMEDIES: Final = {
    "key": "; restore it from a copy of this signer's store (other keys are not affected)",
    "prss": "; the next setup replaces it",
    "counters": "; what it counts is read from the audit chain instead",
    "gate": "; seal the gate's secrets again with `keymoot gate secret`",
}
DATA_KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
SEALED_KEY_BYTES: Final = DATA_KEY_BYTES + TAG_BYTES
# Each share-encryption key and each derived wrapping key encrypts once, so its nonce need not vary.
ONE_TIME_NONCE: Final = bytes(12)


class RecordContext(msgspec.Struct, frozen=True):
    """What a sealed record is. Unsealing needs the same values, or it is refused.

    `signer`: party index. `epoch`, `version`: below 2^63. Raises `CallerError` outside of that.
    """

    network: str
    signer: int
    kind: str
    name: str
    epoch: int
    version: int

    def __post_init__(self) -> None:
        if min(self.signer, self.epoch, self.version) < 0 or max(self.signer, self.epoch, self.version) >= 2**63:
            raise CallerError("a record's signer, epoch and version are numbers from 0 to 2^63 - 1")


class Binding(msgspec.Struct, frozen=True):
    """A record's context, its owner's identity fingerprint, and how its key is sealed."""

    context: RecordContext
    fingerprint: str
    profile: str
    key_label: str

    def payload_aad(self) -> bytes:
        """Associated data of the payload: survives a change of the HSM key."""
        return associated_data(self)[0]

    def key_aad(self) -> bytes:
        """Associated data of the sealed share-encryption key."""
        return associated_data(self)[1]

    def derivation_input(self, salt: bytes) -> bytes:
        """What the HSM's HMAC turns into a wrapping key (profile `hmac-kdf`)."""
        context = self.context
        return encode_parts(
            Tag.SEAL_WRAP,
            context.network.encode(),
            _number(context.signer),
            self.fingerprint.encode(),
            _number(context.epoch),
            salt,
        )


@lru_cache(maxsize=256)
def associated_data(binding: Binding) -> tuple[bytes, bytes]:
    """That of the payload, and that of the sealed share-encryption key: a key in use is unsealed for each signature."""
    context = binding.context
    what = (
        _number(RECORD_FORMAT),
        context.network.encode(),
        _number(context.signer),
        binding.fingerprint.encode(),
        context.kind.encode(),
        context.name.encode(),
        _number(context.epoch),
        _number(context.version),
    )
    how = (binding.profile.encode(), binding.key_label.encode())
    return (
        encode_parts(Tag.SEAL_RECORD, b"payload", *what),
        encode_parts(Tag.SEAL_RECORD, b"key", *what, *how),
    )


class SealedRecord(Wire, frozen=True):
    """A sealed record's bytes. `salt`: the GCM nonce (12 bytes) or the derivation salt (32 bytes)."""

    format: Annotated[int, msgspec.Meta(ge=RECORD_FORMAT, le=RECORD_FORMAT)]
    profile: Annotated[str, msgspec.Meta(pattern=r"^(gcm|hmac-kdf)$(?!\n)")]
    key_label: Annotated[str, msgspec.Meta(min_length=1, max_length=48)]
    salt: Annotated[bytes, msgspec.Meta(min_length=12, max_length=32)]
    sealed_key: Annotated[bytes, msgspec.Meta(min_length=SEALED_KEY_BYTES, max_length=SEALED_KEY_BYTES)]
    payload: Annotated[bytes, msgspec.Meta(min_length=TAG_BYTES, max_length=MAX_PLAINTEXT_BYTES + TAG_BYTES)]


def parse_record(data: bytes, context: RecordContext) -> SealedRecord:
    """Raises `SealBroken`, which names `context`, on anything but one canonical record."""
    try:
        return decode(data, SealedRecord)
    except Malformed as error:
        raise SealBroken(f"sealed record {_name(context)} cannot be read: {error}{_remedy(context)}") from None


def serialize_record(record: SealedRecord) -> bytes:
    """The record as stored: at most 60 KiB of payload and about 200 bytes."""
    return encode(record)


def new_data_key() -> bytes:
    """A fresh 256-bit share-encryption key."""
    return os.urandom(DATA_KEY_BYTES)


def seal_payload(data_key: bytes, binding: Binding, plaintext: Secret | bytes) -> bytes:
    """Encrypt `plaintext` (at most `MAX_PLAINTEXT_BYTES`) under its own key. Raises `CallerError`."""
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise CallerError(f"a sealed record holds at most {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}")
    revealed = plaintext.reveal() if isinstance(plaintext, Secret) else plaintext
    return AESGCM(data_key).encrypt(ONE_TIME_NONCE, revealed, binding.payload_aad())


def unseal_payload(data_key: bytes, binding: Binding, payload: bytes) -> Secret:
    """Undo `seal_payload`. Raises `SealBroken`."""
    try:
        return Secret(AESGCM(data_key).decrypt(ONE_TIME_NONCE, payload, binding.payload_aad()))
    except InvalidTag:
        raise broken(binding) from None


def broken(binding: Binding) -> SealBroken:
    """The error for a record that does not verify as what it was asked for."""
    return SealBroken(
        f"sealed record {_name(binding.context)} does not verify: altered, of another signer or network, or sealed by "
        f"another HSM key{_remedy(binding.context)}"
    )


def _name(context: RecordContext) -> str:
    return f"{context.kind}/{context.name} version {context.version} of epoch {context.epoch}"


def _remedy(context: RecordContext) -> str:
    return REMEDIES.get(context.kind, "")


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")
