"""The signer's configuration, `signer.yaml`. Relative paths are relative to the file's directory."""

from __future__ import annotations

import pathlib
from typing import Annotated

import msgspec

from appliance.credential_files import resolved
from appliance.metrics import LoopbackListen
from policies.errors import CallerError
from policies.load import load_yaml
from policies.roster import Name

HttpsUrl = Annotated[str, msgspec.Meta(pattern=r"^https://[^\s/?#@]+(/[^\s?#]*)?$(?!\n)", max_length=512)]


class CoordinatorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One coordinator: `url` is `https://host:port`; `ca` is pinned, the others are our own. Every `key` of this file
    is a path, or `credential:NAME` for what the unit's LoadCredential= hands over."""

    name: Name
    url: HttpsUrl
    ca: pathlib.Path
    certificate: pathlib.Path
    key: pathlib.Path


class GateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The operator's handler: pinned CA, and a certificate and key where it wants mutual TLS."""

    url: HttpsUrl
    ca: pathlib.Path
    certificate: pathlib.Path | None = None
    key: pathlib.Path | None = None


class SignerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`signer.yaml`. Without `gate`, every gate call is answered as unreachable, so the enclave refuses.

    `metrics`: where on loopback Prometheus may ask, such as `127.0.0.1:9464`. `status_socket`: the Unix socket on
    which `keymoot status` asks.
    """

    network: Name
    enclave_socket: pathlib.Path
    state: pathlib.Path
    coordinators: Annotated[tuple[CoordinatorSettings, ...], msgspec.Meta(min_length=1, max_length=8)]
    gate: GateSettings | None = None
    metrics: LoopbackListen | None = None
    status_socket: pathlib.Path | None = None

    def __post_init__(self) -> None:
        if len({coordinator.name for coordinator in self.coordinators}) != len(self.coordinators):
            raise ValueError("two coordinators have the same name")


def load_config(path: pathlib.Path) -> SignerConfig:
    """Read `signer.yaml` and make its paths absolute. Raises `CallerError` "file:line:col: …"."""
    config = load_yaml(path, SignerConfig)
    base = path.resolve().parent
    gate = config.gate
    if gate is not None and (gate.certificate is None) != (gate.key is None):
        raise CallerError(f"{path}: gate: set both certificate and key, or neither")
    return msgspec.structs.replace(
        config,
        enclave_socket=base / config.enclave_socket,
        state=base / config.state,
        status_socket=None if config.status_socket is None else base / config.status_socket,
        coordinators=tuple(
            msgspec.structs.replace(
                item, ca=base / item.ca, certificate=base / item.certificate, key=resolved(base, item.key)
            )
            for item in config.coordinators
        ),
        gate=None
        if gate is None
        else msgspec.structs.replace(
            gate,
            ca=base / gate.ca,
            certificate=None if gate.certificate is None else base / gate.certificate,
            key=None if gate.key is None else resolved(base, gate.key),
        ),
    )
