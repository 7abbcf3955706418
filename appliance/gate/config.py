"""The reference handler's configuration, `gate.yaml`, and its rules. Relative paths: from the file's directory."""

from __future__ import annotations

import pathlib
from typing import Annotated, Literal

import msgspec

from appliance.private_files import read_private
from policies.errors import CallerError
from policies.json_strict import parse_json
from policies.load import load_yaml

MAX_SECRETS_BYTES = 4096
Kind = Literal["Signing", "SigningBatch", "KeyCreation", "Refresh", "Reshare", "BackupKeyChange"]
Listen = Annotated[str, msgspec.Meta(pattern=r"^[^\s:]+:[0-9]{1,5}$(?!\n)")]
PublicKey = Annotated[str, msgspec.Meta(pattern=r"^whpk_[A-Za-z0-9+/]{43}=$(?!\n)")]
PrivateKey = Annotated[str, msgspec.Meta(pattern=r"^whsk_[A-Za-z0-9+/]{43}([A-Za-z0-9+/]{43}=)?=$(?!\n)")]
Secret = Annotated[str, msgspec.Meta(pattern=r"^whsec_[A-Za-z0-9+/]{32,128}={0,2}$(?!\n)")]


class GateRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this handler refuses. Left out: it agrees to every signature, and to new keys, that its signer asks about.

    `kinds`: of steps that it agrees to at all; of `Refresh`, `Reshare` and `BackupKeyChange` it looks at nothing else.
    `refuse_destinations`: addresses, compared without case. `max_wei`: highest value of a transaction.
    """

    kinds: tuple[Kind, ...] = ("Signing", "SigningBatch", "KeyCreation")
    refuse_destinations: tuple[str, ...] = ()
    max_wei: int | None = None
    refuse_blind: bool = False


class GateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`gate.yaml`. `secrets`: a JSON file of mode 0600 with the same two secrets as the enclave's.

    `client_ca`: with it, only clients with a certificate of that CA may connect.
    """

    listen: Listen
    certificate: pathlib.Path
    key: pathlib.Path
    secrets: pathlib.Path
    client_ca: pathlib.Path | None = None
    rules: GateRules = GateRules()


class GateSecrets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`whsec_` secrets: `request_hmac` verifies what the enclave sends, `answer_hmac` signs what we answer. Beside them
    or in their place Ed25519: the enclave's public key (`whpk_`), and our own private one (`whsk_`)."""

    request_hmac: Secret | None = None
    answer_hmac: Secret | None = None
    request_ed25519: PublicKey | None = None
    answer_ed25519: PrivateKey | None = None

    def __post_init__(self) -> None:
        if not (self.request_hmac or self.request_ed25519) or not (self.answer_hmac or self.answer_ed25519):
            raise ValueError("one key for each direction")

    def __repr__(self) -> str:
        return "GateSecrets(…)"


def load_config(path: pathlib.Path) -> GateConfig:
    """Read `gate.yaml` and make its paths absolute. Raises `CallerError` "file:line:col: …"."""
    config = load_yaml(path, GateConfig)
    base = path.resolve().parent
    return msgspec.structs.replace(
        config,
        certificate=base / config.certificate,
        key=base / config.key,
        secrets=base / config.secrets,
        client_ca=None if config.client_ca is None else base / config.client_ca,
    )


def load_secrets(path: pathlib.Path) -> GateSecrets:
    """Read the secrets' file. Raises `CallerError` where it is away, open to others or malformed."""
    data = read_secrets(path)
    try:
        return msgspec.convert(parse_json(data), GateSecrets)
    except (ValueError, msgspec.ValidationError):
        raise CallerError(f"gate secrets {path} are not {{request_hmac: whsec_…, answer_hmac: whsec_…}}") from None


def read_secrets(path: pathlib.Path) -> bytes:
    """The bytes of a file of secrets. Raises `CallerError` where it is away or open to others."""
    return read_private(path, "the file of gate secrets", MAX_SECRETS_BYTES)
