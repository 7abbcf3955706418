"""What a module can really do, and how Keymoot would seal with it: for `keymoot hsm check`.

Each operation is done (trials.py), whatever the module lists. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import msgspec
import pkcs11
from pkcs11 import TokenFlag
from pkcs11 import exceptions as p11

from enclave.hsm.config import HsmConfig, read_pin
from enclave.hsm.errors import HsmMisconfigured
from enclave.hsm.keys import ProfileName, find_identity, find_sealing_key
from enclave.hsm.library import load_library
from enclave.hsm.module import Module, hsm_call, log_in
from enclave.hsm.trials import COUNTER, ECDSA, EXPORT, GCM, HMAC, SECRET, Operation, timed, try_operations
from policies.roster import identity_fingerprint


class ConfiguredKey(msgspec.Struct, frozen=True):
    """A key that the configuration names: whether it is there and cannot leave. `detail`: the identity's fingerprint,
    how a sealing key is used, or what is wrong."""

    use: Literal["identity", "sealing", "retired"]
    label: str
    good: bool
    detail: str


class Checked(msgspec.Struct, frozen=True):
    """The module and what it can do. `profile`: how Keymoot would seal with it, None where it cannot be used.
    `keys`: those that the configuration names; before provisioning none of them is good."""

    lib: str
    manufacturer: str
    description: str
    version: str
    token: str
    slot: int
    initialize_us: float
    login_us: float
    operations: tuple[Operation, ...]
    keys: tuple[ConfiguredKey, ...]
    profile: str | None
    reason: str

    @property
    def usable(self) -> bool:
        """Whether Keymoot can work with this module and configuration."""
        return self.profile is not None


class Token(msgspec.Struct, frozen=True):
    """A token that a module shows to everybody."""

    slot: int
    label: str
    manufacturer: str
    model: str
    serial: str


def list_tokens(config: HsmConfig) -> list[Token]:
    """The initialized tokens of the module `config.lib`; nothing else of `config` counts. Nobody logs in.

    Raises `HsmAway`, `HsmMisconfigured`.
    """
    library = load_library(config)
    try:
        with hsm_call("list tokens"):
            found = [slot.get_token() for slot in library.get_slots(token_present=True)]
        return [
            Token(
                token.slot.slot_id,
                _text(token.label),
                _text(token.manufacturer_id),
                _text(token.model),
                _text(token.serial),
            )
            for token in found
            if TokenFlag.TOKEN_INITIALIZED in token.flags
        ]
    finally:
        with contextlib.suppress(p11.PKCS11Error):
            library.finalize()


def _text(value: str | bytes) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value).strip()


def check_module(config: HsmConfig) -> Checked:
    """Open the module and try everything. Raises `HsmAway`, `HsmMisconfigured` where it cannot be opened."""
    pin = read_pin(config.pin)
    library, initialize_us = timed(lambda: load_library(config))
    try:
        session, login_us = timed(lambda: log_in(library, config, pin))
    except BaseException:
        with contextlib.suppress(p11.PKCS11Error):
            library.finalize()
        raise
    module = Module(library, session)
    try:
        operations = try_operations(config, session)
        profile, reason = _choice(config, {operation.name: operation for operation in operations})
        return Checked(
            lib=config.lib,
            manufacturer=library.manufacturer_id.strip(),
            description=library.library_description.strip(),
            version=".".join(map(str, library.library_version)),
            token=session.token.label.strip(),
            slot=session.token.slot.slot_id,
            initialize_us=initialize_us,
            login_us=login_us,
            operations=operations,
            keys=tuple(_configured_keys(config, session)),
            profile=profile,
            reason=reason,
        )
    finally:
        module.close()


def _configured_keys(config: HsmConfig, session: pkcs11.Session) -> Iterator[ConfiguredKey]:
    """Each of them found and tried as the enclave does when it opens the HSM. Raises `HsmAway`."""
    label, accept = config.identity_key_label, config.accept_key_export
    try:
        identity = find_identity(session, label, accept_export=accept)
    except HsmMisconfigured as error:
        yield ConfiguredKey("identity", label, good=False, detail=str(error))
    else:
        yield ConfiguredKey("identity", label, good=True, detail=identity_fingerprint(identity.point))
    for label in (config.sealing_key_label, *config.retired_key_labels):
        use: Literal["sealing", "retired"] = "sealing" if label == config.sealing_key_label else "retired"
        try:
            _, profile = find_sealing_key(session, label, accept_export=accept)
        except HsmMisconfigured as error:
            yield ConfiguredKey(use, label, good=False, detail=str(error))
        else:
            yield ConfiguredKey(use, label, good=True, detail=profile.value)


def _choice(config: HsmConfig, found: dict[str, Operation]) -> tuple[str | None, str]:
    """The sealing profile and why, or None and why not."""
    if not found[ECDSA].works:
        return None, "it does no ECDSA on P-256, which the signer's identity key needs"
    for needed in (SECRET, EXPORT):
        if not found[needed].works and not (needed == EXPORT and config.accept_key_export):
            advice = "; hsm.accept_key_export accepts that" if needed == EXPORT else ""
            return None, f"{found[needed].detail}{advice}"
    gcm, hmac = found[GCM], found[HMAC]
    if gcm.works and found[COUNTER].works:
        return (
            ProfileName.GCM.value,
            "AES-256-GCM works, refuses altered data, and its seals can be counted on the token",
        )
    why_not = gcm.detail if not gcm.works else found[COUNTER].detail
    if hmac.works:
        return ProfileName.HMAC_KDF.value, f"HMAC-SHA256 works; AES-256-GCM is not used: {why_not}"
    return None, f"neither AES-256-GCM ({why_not}) nor HMAC-SHA256 ({hmac.detail}) works"
