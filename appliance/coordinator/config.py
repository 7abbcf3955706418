"""The coordinator's configuration, `coordinator.yaml`. Relative paths are relative to the file's directory."""

from __future__ import annotations

import pathlib
from typing import Annotated

import msgspec

from appliance.metrics import LoopbackListen
from enclave.wire import MAX_BATCH
from policies.errors import CallerError
from policies.load import load_yaml
from policies.roster import Name, Roster

Listen = Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$(?!\n)")]
MAX_MARK = 100_000
Mark = Annotated[int, msgspec.Meta(ge=1, le=MAX_MARK)]


class SignersSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where signers connect to. `client_ca`: the bundle their certificates are of, one CA per operator."""

    listen: Listen
    certificate: pathlib.Path
    key: pathlib.Path
    client_ca: pathlib.Path


class ApiSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where clients connect to."""

    listen: Listen
    certificate: pathlib.Path
    key: pathlib.Path


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Presignatures of one committee: below `low` batches of `batch` are made until there are `high`."""

    low: Mark = 2048
    high: Mark = 8192
    batch: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)] = 4096

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("pool.low is above pool.high")


class CoordinatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`coordinator.yaml`. `name` is what signers call this coordinator.

    `metrics`: where on loopback Prometheus may ask, such as `127.0.0.1:9465`.
    """

    network: Name
    name: Name
    roster: pathlib.Path
    state: pathlib.Path
    signers: SignersSettings
    api: ApiSettings
    pool: PoolSettings = msgspec.field(default_factory=PoolSettings)
    metrics: LoopbackListen | None = None


def load_config(path: pathlib.Path) -> CoordinatorConfig:
    """Read `coordinator.yaml` and make its paths absolute. Raises `CallerError` "file:line:col: …"."""
    config = load_yaml(path, CoordinatorConfig)
    base = path.resolve().parent
    signers, api = config.signers, config.api
    return msgspec.structs.replace(
        config,
        roster=base / config.roster,
        state=base / config.state,
        signers=msgspec.structs.replace(
            signers,
            certificate=base / signers.certificate,
            key=base / signers.key,
            client_ca=base / signers.client_ca,
        ),
        api=msgspec.structs.replace(api, certificate=base / api.certificate, key=base / api.key),
    )


def load_roster(config: CoordinatorConfig) -> Roster:
    """The roster the configuration names. Raises `CallerError`, also where it is another network's."""
    roster = load_yaml(config.roster, Roster)
    if roster.network != config.network:
        raise CallerError(f"{config.roster} is of network {roster.network}, not {config.network}")
    return roster


def split_listen(listen: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[address]:port`. Raises `CallerError` for a port above 65535."""
    host, _, port = listen.rpartition(":")
    if int(port) > 65_535:
        raise CallerError(f"listen: {listen}: there is no port {port}")
    return host.strip("[]"), int(port)
