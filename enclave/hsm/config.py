"""The `hsm` section of the enclave's configuration, and PIN references."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from enclave.hsm.errors import HsmMisconfigured

MAX_PIN_BYTES = 256
WORLD_ACCESS = 0o007

KeyLabel = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$(?!\n)")]
PinReference = Annotated[str, msgspec.Meta(pattern=r"^(file:.+|credential:[A-Za-z0-9][A-Za-z0-9._-]*)$(?!\n)")]


class HsmConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which PKCS#11 module and token to use, and the labels of the keys on it.

    `pin` is a reference, never the PIN: `file:PATH`, or `credential:NAME` for a systemd credential.
    The token is named by `token_label` or by the number of its `slot`, one of them.
    `retired_key_labels` are former sealing keys that older records need; nothing new is sealed with them.
    `init_args`: initialize the library with `CKF_OS_LOCKING_OK` and this string; for NSS `configdir='sql:/DIRECTORY'`.
    `accept_key_export`: use a module that exports keys marked non-extractable. Its PIN is then all that guards them.
    `network`: the module reaches its HSM over the network; without it the enclave forbids itself all but Unix sockets.
    """

    lib: Annotated[str, msgspec.Meta(min_length=1)]
    pin: PinReference
    token_label: Annotated[str, msgspec.Meta(min_length=1, max_length=32)] | None = None
    slot: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    sealing_key_label: KeyLabel = "keymoot-seal-1"
    identity_key_label: KeyLabel = "keymoot-identity"
    retired_key_labels: Annotated[tuple[KeyLabel, ...], msgspec.Meta(max_length=16)] = ()
    init_args: Annotated[str, msgspec.Meta(max_length=1024, pattern=r"^[^\x00]*$(?!\n)")] | None = None
    accept_key_export: bool = False
    network: bool = False

    def __post_init__(self) -> None:
        if (self.token_label is None) == (self.slot is None):
            raise ValueError("name the token by token_label or by slot, one of them")

    @property
    def token(self) -> str:
        """The token as errors name it."""
        return f"token {self.token_label!r}" if self.slot is None else f"token in slot {self.slot}"

    def resolved(self, directory: Path) -> HsmConfig:
        """The same, with a relative PIN path taken from `directory` (that of the configuration file)."""
        kind, _, path = self.pin.partition(":")
        if kind != "file":
            return self
        return msgspec.structs.replace(self, pin=f"file:{directory / path}")


def read_pin(reference: str, environment: Mapping[str, str] = os.environ) -> str:
    """The PIN behind `reference`, without a trailing newline.

    Raises `HsmMisconfigured`, which names the file but never its content.
    """
    path = _pin_path(reference, environment)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & WORLD_ACCESS:
                raise HsmMisconfigured(f"everybody may read the PIN file {path}: run chmod o-rwx on it")
            content = file.read(MAX_PIN_BYTES + 2)
    except OSError as error:
        raise HsmMisconfigured(f"cannot read the PIN from {path}: {error.strerror}") from None
    pin = content.removesuffix(b"\n").removesuffix(b"\r")
    if not 1 <= len(pin) <= MAX_PIN_BYTES:
        raise HsmMisconfigured(f"the PIN file {path} must hold 1 to {MAX_PIN_BYTES} bytes and nothing else")
    try:
        return pin.decode()
    except UnicodeDecodeError:
        raise HsmMisconfigured(f"the PIN file {path} is not UTF-8 text") from None


def pin_mark(reference: str, salt: bytes, environment: Mapping[str, str] = os.environ) -> bytes | None:
    """32 bytes that change whenever the PIN's file is written, and say nothing of the PIN without `salt` (16 random
    bytes of this process); None where the PIN cannot be read."""
    try:
        pin = read_pin(reference, environment)
        written_ns = _pin_path(reference, environment).stat().st_mtime_ns
    except (HsmMisconfigured, OSError):
        return None
    return hashlib.sha256(salt + written_ns.to_bytes(8, "big") + pin.encode()).digest()


def _pin_path(reference: str, environment: Mapping[str, str]) -> Path:
    kind, _, name = reference.partition(":")
    if kind == "file" and name:
        return Path(name)
    if kind != "credential" or not name or "/" in name:
        raise HsmMisconfigured("hsm.pin must be file:PATH or credential:NAME")
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise HsmMisconfigured(
            f"hsm.pin is credential:{name}, but systemd passed no credentials: add LoadCredential={name}:PATH"
        )
    return Path(directory) / name
