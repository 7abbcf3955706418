"""The coordinator's configuration, `coordinator.yaml`. Relative paths are relative to the file's directory."""

from __future__ import annotations

import pathlib
from typing import Annotated

import msgspec

from appliance.credential_files import resolved
from appliance.metrics import LoopbackListen
from enclave.wire import MAX_BATCH
from policies.clients import Name as ClientName
from policies.errors import CallerError
from policies.load import load_yaml
from policies.roster import Name, Roster

Listen = Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$(?!\n)")]
MAX_MARK = 100_000
Mark = Annotated[int, msgspec.Meta(ge=1, le=MAX_MARK)]


class SignersSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where signers connect to. `key`: a path, or `credential:NAME` of what the unit's LoadCredential= hands over.
    `client_ca`: the bundle their certificates are of, one CA per operator. `authorities`: by a signer's name, the file
    with the CA that its certificate must be directly of; empty: any of the bundle."""

    listen: Listen
    certificate: pathlib.Path
    key: pathlib.Path
    client_ca: pathlib.Path
    authorities: Annotated[dict[Name, pathlib.Path], msgspec.Meta(max_length=64)] = msgspec.field(default_factory=dict)


class Reader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may read, by one of the two. `token_sha256`: hex of SHA-256 over the text of a token that
    `keymoot coordinator token` made. `certificate`: the common name of a client certificate of `client_ca`."""

    name: ClientName
    token_sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")] | None = None
    certificate: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None

    def __post_init__(self) -> None:
        if (self.token_sha256 is None) == (self.certificate is None):
            raise ValueError(f"reader {self.name} needs one of token_sha256 and certificate")


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one client may take of the API. `strangers_per_s`: requests without a good credential, of one address.
    `body_timeout_s`: for the whole body of a request. `idle_timeout_s`: how long a connection may have no whole request
    under way, because it is idle or because the head of one comes byte by byte."""

    connections: Annotated[int, msgspec.Meta(ge=16, le=100_000)] = 12_000
    connections_per_address: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2_000
    requests_per_s: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1_000
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=4_096)] = 512
    strangers_per_s: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 50
    body_timeout_s: Annotated[float, msgspec.Meta(ge=0.1, le=600)] = 10.0
    idle_timeout_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 30.0


class ApiSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where clients connect to. `clients`: a file in the format of a policy; who it lists may send signed requests.
    `client_ca`: the bundle that readers' certificates are of; nobody needs to show one."""

    listen: Listen
    certificate: pathlib.Path
    key: pathlib.Path
    clients: pathlib.Path
    readers: Annotated[tuple[Reader, ...], msgspec.Meta(max_length=256)] = ()
    client_ca: pathlib.Path | None = None
    limits: LimitSettings = msgspec.field(default_factory=LimitSettings)

    def __post_init__(self) -> None:
        for what in ("name", "token_sha256", "certificate"):
            values = [value for reader in self.readers if (value := getattr(reader, what)) is not None]
            if len(values) != len(set(values)):
                raise ValueError(f"api.readers: two have the same {what}")
        if self.client_ca is None and any(reader.certificate for reader in self.readers):
            raise ValueError("api.readers: one is known by its certificate, so api.client_ca must be there")


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Presignatures of one committee: below `low` batches of `batch` are made until there are `high`."""

    low: Mark = 2048
    high: Mark = 8192
    batch: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)] = 4096

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("pool.low is above pool.high")


class WaitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a request waits before it fails: until fewer signers than it needs have been online for `signers_s`;
    `pool_s` for links and presignatures, three times as long for a batch."""

    signers_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 5.0
    pool_s: Annotated[float, msgspec.Meta(ge=1, le=600)] = 30.0


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
    wait: WaitSettings = msgspec.field(default_factory=WaitSettings)
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
            key=resolved(base, signers.key),
            client_ca=base / signers.client_ca,
            authorities={name: base / path for name, path in signers.authorities.items()},
        ),
        api=msgspec.structs.replace(
            api,
            certificate=base / api.certificate,
            key=resolved(base, api.key),
            clients=base / api.clients,
            client_ca=None if api.client_ca is None else base / api.client_ca,
        ),
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
