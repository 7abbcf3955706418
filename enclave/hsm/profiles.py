"""The HSM half of sealing: two profiles, each one HSM call per seal and one per unseal.

- `gcm`: the HSM encrypts the share-encryption key with AES-256-GCM and the record's associated data.
- `hmac-kdf`, for modules without a working GCM: the HSM's HMAC-SHA256 derives a wrapping key for each record,
  which seals the share-encryption key in software, with the same associated data.

Which one a token gets is decided by trying (`choose_profile`), not by the mechanism list: some list GCM and
cannot encrypt. CBC with padding is never used: altered ciphertexts pass.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

import msgspec
import pkcs11
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pkcs11 import GCMParams, Mechanism
from pkcs11 import exceptions as p11

from enclave.hsm.counter import SealCounter
from enclave.hsm.errors import HsmAway, HsmMisconfigured, SealBroken
from enclave.hsm.keys import Handle, ProfileName, find_sealing_key, make_sealing_key
from enclave.hsm.module import AWAY_REMEDY, hsm_call
from enclave.hsm.records import (
    DATA_KEY_BYTES,
    ONE_TIME_NONCE,
    SEALED_KEY_BYTES,
    Binding,
    RecordContext,
    broken,
)

GCM_NONCE_BYTES: Final = 12
SALT_BYTES: Final = 32
_OUTPUT_BUFFER_BYTES: Final = 256


class WrappedKey(msgspec.Struct, frozen=True):
    """A share-encryption key sealed by the HSM, and the nonce or salt it takes to unseal it."""

    salt: bytes
    sealed: bytes


class SealingProfile(Protocol):
    """One sealing key in use. All calls raise the module's errors."""

    name: ClassVar[ProfileName]

    def count_seal(self) -> None:
        """Called before each `wrap` of a record. Raises `SealLimitReached`."""

    def wrap(self, data_key: bytes, binding: Binding) -> WrappedKey:
        """Seal a share-encryption key."""

    def unwrap(self, wrapped: WrappedKey, binding: Binding) -> bytes:
        """Undo `wrap`. Raises `SealBroken`; `gcm` raises a module's error for an altered record too."""


class GcmProfile:
    """`take` counts each seal, and refuses when the key is worn out."""

    name: ClassVar[ProfileName] = ProfileName.GCM

    def __init__(self, key: Handle, take: Callable[[], None]) -> None:
        self._key = key
        self._take = take

    def count_seal(self) -> None:
        self._take()

    def wrap(self, data_key: bytes, binding: Binding) -> WrappedKey:
        parameters = GCMParams(os.urandom(GCM_NONCE_BYTES), binding.key_aad())
        sealed = self._key.encrypt(
            data_key,
            mechanism=Mechanism.AES_GCM,
            mechanism_param=parameters,
            buffer_size=_OUTPUT_BUFFER_BYTES,
        )
        # Some HSMs put a nonce of their own in place of ours, in the same memory: read it back.
        return WrappedKey(parameters.nonce, sealed)

    def unwrap(self, wrapped: WrappedKey, binding: Binding) -> bytes:
        if len(wrapped.salt) != GCM_NONCE_BYTES:
            raise broken(binding)
        data_key: bytes = self._key.decrypt(
            wrapped.sealed,
            mechanism=Mechanism.AES_GCM,
            mechanism_param=GCMParams(wrapped.salt, binding.key_aad()),
            buffer_size=_OUTPUT_BUFFER_BYTES,
        )
        return data_key


class HmacKdfProfile:
    """Every record has a random salt, so every wrapping key is used once: there is nothing to count."""

    name: ClassVar[ProfileName] = ProfileName.HMAC_KDF

    def __init__(self, key: Handle) -> None:
        self._key = key

    def count_seal(self) -> None:
        pass

    def wrap(self, data_key: bytes, binding: Binding) -> WrappedKey:
        salt = os.urandom(SALT_BYTES)
        cipher = self._derive(salt, binding)
        return WrappedKey(salt, cipher.encrypt(ONE_TIME_NONCE, data_key, binding.key_aad()))

    def unwrap(self, wrapped: WrappedKey, binding: Binding) -> bytes:
        if len(wrapped.salt) != SALT_BYTES:
            raise broken(binding)
        try:
            return self._derive(wrapped.salt, binding).decrypt(ONE_TIME_NONCE, wrapped.sealed, binding.key_aad())
        except InvalidTag:
            raise broken(binding) from None

    def _derive(self, salt: bytes, binding: Binding) -> AESGCM:
        wrapping_key = self._key.sign(
            binding.derivation_input(salt),
            mechanism=Mechanism.SHA256_HMAC,
            buffer_size=_OUTPUT_BUFFER_BYTES,
        )
        if len(wrapping_key) != DATA_KEY_BYTES:
            raise HsmAway("the HSM's HMAC has a wrong length", AWAY_REMEDY)
        return AESGCM(wrapping_key)


def open_profile(session: pkcs11.Session, label: str, *, accept_export: bool = False) -> SealingProfile:
    """The sealing key `label`, checked, in the profile it is for. Not self-tested yet.

    Raises `KeyMissing`, `KeyExposed`, `HsmMisconfigured`, `HsmAway`.
    """
    key, name = find_sealing_key(session, label, accept_export=accept_export)
    if name is ProfileName.HMAC_KDF:
        return HmacKdfProfile(key)
    return GcmProfile(key, SealCounter(session, label).take)


def choose_profile(session: pkcs11.Session) -> ProfileName:
    """`gcm` where a throw-away key passes the self-test, `hmac-kdf` otherwise."""
    try:
        key = make_sealing_key(session, "keymoot-self-test", ProfileName.GCM, store=False)
    except p11.PKCS11Error:
        return ProfileName.HMAC_KDF
    try:
        self_test(GcmProfile(key, lambda: None))
    except (HsmAway, HsmMisconfigured):
        return ProfileName.HMAC_KDF
    finally:
        with contextlib.suppress(p11.PKCS11Error):
            key.destroy()
    return ProfileName.GCM


@dataclass(frozen=True)
class Canary:
    """A sealed throw-away key, kept to ask at any time whether the HSM still unseals."""

    binding: Binding
    wrapped: WrappedKey
    data_key: bytes = field(repr=False)

    def check(self, profile: SealingProfile) -> None:
        """One HSM call. Raises `HsmAway`."""
        with hsm_call("unseal"):
            if profile.unwrap(self.wrapped, self.binding) != self.data_key:
                raise HsmAway("the HSM unseals wrongly", AWAY_REMEDY)


def self_test(profile: SealingProfile) -> Canary:
    """Seal and unseal for real; altered ciphertext, associated data and nonce must be refused.

    Its one seal is not counted: the margin between `SEAL_LIMIT` and 2^32 covers one for each opening.
    Raises `HsmMisconfigured` where the module cannot be trusted with sealing, `HsmAway`.
    """
    context = RecordContext("self-test", 0, "self-test", "", 0, 0)
    binding = Binding(context, "", profile.name, "")
    data_key = os.urandom(DATA_KEY_BYTES)
    with hsm_call(f"seal with profile {profile.name}"):
        wrapped = profile.wrap(data_key, binding)
    if len(wrapped.sealed) != SEALED_KEY_BYTES:
        raise HsmMisconfigured(f"the module's {profile.name} gives {len(wrapped.sealed)} bytes: cannot be used")
    canary = Canary(binding, wrapped, data_key)
    canary.check(profile)
    other = Binding(context, "other", profile.name, "")
    for altered, claimed in (
        (WrappedKey(wrapped.salt, _flip(wrapped.sealed, 0)), binding),
        (WrappedKey(wrapped.salt, _flip(wrapped.sealed, -1)), binding),
        (WrappedKey(_flip(wrapped.salt, 0), wrapped.sealed), binding),
        (wrapped, other),
    ):
        if _unseals(profile, altered, claimed):
            raise HsmMisconfigured(f"the module's {profile.name} accepts altered data: it cannot be used")
    canary.check(profile)
    return canary


def _unseals(profile: SealingProfile, wrapped: WrappedKey, binding: Binding) -> bool:
    try:
        profile.unwrap(wrapped, binding)
    except (p11.PKCS11Error, SealBroken):
        return False
    return True


def _flip(data: bytes, position: int) -> bytes:
    altered = bytearray(data)
    altered[position] ^= 1
    return bytes(altered)
