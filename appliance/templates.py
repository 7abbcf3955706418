"""The texts of all configuration files, commented, and what they are written from.

Paths inside a configuration file are relative to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from appliance.api.credentials import new_token

SIGNERS_PORT = 8443
API_PORT = 8080
TOKEN_FILE = "client.token"  # noqa: S105
CLIENTS_FILE = "clients.yaml"


@dataclass(frozen=True)
class Places:
    """Where a process finds what is not its configuration. The default is all beside the configuration file; an
    installed host's are in `layout`. `state`, `key`: None for the file that `init` makes.
    `signer_user`: who may connect to the enclave, if not the enclave's own user.
    """

    enclave_socket: str = "run/enclave.sock"
    enclave_state: str = "enclave-state"
    status_socket: str = "run/signer.sock"
    state: str | None = None
    key: str | None = None
    signer_user: str | None = None


BESIDE = Places()


@dataclass(frozen=True)
class Hsm:
    """Where a signer's PKCS#11 token is: by `token_label`, or by the number of its `slot` where that is given.

    `pin` is a reference (`file:PATH`, `credential:NAME`), never the PIN. The rest is as in the section `hsm` of
    enclave.yaml.
    """

    lib: str
    token_label: str
    pin: str
    slot: int | None = None
    init_args: str | None = None
    accept_key_export: bool = False


@dataclass(frozen=True)
class CoordinatorAddress:
    """A coordinator as a signer knows it: name, URL of its signers' port, and the CA of its certificate."""

    name: str
    url: str
    ca_pem: bytes


@dataclass(frozen=True)
class GateAddress:
    """An operator's gate as its signer knows it. `mode` `signed`, or `status`, which is weaker and takes mutual TLS."""

    url: str
    ca_pem: bytes
    mode: str = "signed"


@dataclass(frozen=True)
class SignerSetup:
    """Everything the two files of one signer (enclave.yaml, signer.yaml) are written from."""

    network: str
    name: str
    coordinators: tuple[CoordinatorAddress, ...]
    hsm: Hsm
    gate: GateAddress | None
    places: Places = BESIDE


@dataclass(frozen=True)
class CoordinatorSetup:
    """Everything coordinator.yaml is written from. `names` and `addresses` go into the server's certificate.

    `readers`: name and SHA-256 of the token of everybody who may read.
    """

    network: str
    name: str
    names: tuple[str, ...] = ("localhost",)
    addresses: tuple[str, ...] = ("127.0.0.1",)
    listen_signers: str = f"0.0.0.0:{SIGNERS_PORT}"
    listen_api: str = f"127.0.0.1:{API_PORT}"
    signer_cas: tuple[bytes, ...] = field(default=(), repr=False)
    pool: tuple[int, int, int] = (2048, 8192, 4096)
    readers: tuple[tuple[str, str], ...] = ()
    places: Places = BESIDE


@dataclass(frozen=True)
class GateSetup:
    """Everything gate.yaml of the reference handler is written from."""

    name: str
    listen: str
    names: tuple[str, ...] = ("localhost",)
    addresses: tuple[str, ...] = ("127.0.0.1",)
    refuse_destinations: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClientSetup:
    """Everything client.yaml is written from. `others`: API and CA of further coordinators. `token` is what the client
    shows to read."""

    network: str
    name: str
    api: str
    ca_pem: bytes
    others: tuple[tuple[str, bytes], ...] = ()
    token: str = field(default_factory=new_token, repr=False)


def quoted(text: str) -> str:
    """`text` as a double-quoted YAML string."""
    return json.dumps(text)


def enclave_yaml(setup: SignerSetup) -> str:
    """The text of enclave.yaml."""
    hsm = setup.hsm
    return f"""# The enclave: holds this signer's shares and decides. It opens no network socket.
network: {quoted(setup.network)}
# This signer's name in the roster.
signer: {quoted(setup.name)}
# Who the signers are (`keymoot roster assemble`), and what this signer agrees to sign. Owned by root.
roster: roster.yaml
policy: policy.yaml
# Where the signer process connects; one peer at a time.
socket: {setup.places.enclave_socket}
# What the operators froze this signer for: the enclave alone writes here, and asks before every signature.
state: {setup.places.enclave_state}
{_signer_user_yaml(setup.places)}
hsm:
  # The PKCS#11 module and token. `pin` is a reference: file:PATH or credential:NAME (systemd), never the PIN.
  lib: {quoted(hsm.lib)}
  {_token_yaml(hsm)}
  pin: {quoted(hsm.pin)}
{_hsm_extras_yaml(hsm)}  sealing_key_label: keymoot-seal-1
  identity_key_label: keymoot-identity

gate:
{_gate_mode_yaml(setup.gate)}"""


def _gate_mode_yaml(gate: GateAddress | None) -> str:
    if gate is None:
        return (
            "  # none: nobody is asked before a signature; the policy alone decides. Shown in status and audit.\n"
            "  mode: none\n"
        )
    if gate.mode == "status":
        return (
            "  # status: the handler's HTTP status counts, unsigned. Who takes over the signer's process can approve.\n"
            "  mode: status\n"
        )
    return (
        "  # signed: this enclave itself verifies the answer of the operator's gate. Its secrets are set with\n"
        "  # `keymoot gate secret` and kept in this file, sealed by the HSM.\n"
        "  mode: signed\n  secrets: gate-secrets.sealed\n"
    )


def _signer_user_yaml(places: Places) -> str:
    if places.signer_user is None:
        return ""
    return f"# The user that the signer process runs as: nobody else may connect.\nsigner_user: {places.signer_user}\n"


def _token_yaml(hsm: Hsm) -> str:
    return f"token_label: {quoted(hsm.token_label)}" if hsm.slot is None else f"slot: {hsm.slot}"


def _hsm_extras_yaml(hsm: Hsm) -> str:
    """What few modules need."""
    lines = ""
    if hsm.init_args is not None:
        lines += f"  # Arguments of C_Initialize.\n  init_args: {quoted(hsm.init_args)}\n"
    if hsm.accept_key_export:
        lines += (
            "  # This module exports keys that are marked non-extractable: the PIN is all that guards them.\n"
            "  accept_key_export: true\n"
        )
    return lines


def signer_yaml(setup: SignerSetup) -> str:
    """The text of signer.yaml."""
    places = setup.places
    coordinators = "".join(
        f"  - name: {quoted(coordinator.name)}\n"
        f"    url: {quoted(coordinator.url)}\n"
        f"    ca: {quoted(coordinator.name + '-ca.pem')}\n"
        "    certificate: signer.pem\n"
        f"    key: {places.key or 'signer.key'}\n"
        for coordinator in setup.coordinators
    )
    return f"""# The signer: carries messages between its enclave, the coordinators and the gate. It holds no secret
# and listens on no network port.
network: {quoted(setup.network)}
enclave_socket: {places.enclave_socket}
# Sealed records and the audit chain.
state: {places.state or "state/signer.db"}

# Connected to outbound, with mutual TLS.
coordinators:
{coordinators}{_gate_url_yaml(setup)}
# Where `keymoot status` on this host asks; a Unix socket for this user alone.
status_socket: {places.status_socket}
# Metrics for Prometheus, in plain, on loopback alone (packaging/METRICS.md).
# metrics: 127.0.0.1:9464
"""


def _gate_url_yaml(setup: SignerSetup) -> str:
    gate = setup.gate
    if gate is None:
        return ""
    shown = f"  certificate: signer.pem\n  key: {setup.places.key or 'signer.key'}\n" if gate.mode == "status" else ""
    return (
        "\n# The operator's validation gate. Its answer is verified in the enclave, not here.\n"
        f"gate:\n  url: {quoted(gate.url)}\n  ca: gate-ca.pem\n{shown}"
    )


def coordinator_yaml(setup: CoordinatorSetup) -> str:
    """The text of coordinator.yaml."""
    low, high, batch = setup.pool
    places = setup.places
    readers = "".join(reader_yaml(name, digest) for name, digest in setup.readers)
    return f"""# The coordinator: relays between signers and serves the API. It holds no key, share or secret.
network: {quoted(setup.network)}
# The name by which the signers know it.
name: {quoted(setup.name)}
roster: roster.yaml
state: {places.state or "state/coordinator.db"}

# Where signers connect, with mutual TLS. `client_ca` is a bundle: the CA of each signer's operator.
signers:
  listen: {quoted(setup.listen_signers)}
  certificate: server.pem
  key: {places.key or "server.key"}
  client_ca: signers-ca.pem
  # With several organisations: the CA that each signer's certificate must be of, so that none speaks for another's.
  # authorities: {{NAME: NAME-ca.pem, OTHER: OTHER-ca.pem}}

# Where clients connect, with TLS. They sign their requests (client.yaml); the enclaves decide on them.
api:
  listen: {quoted(setup.listen_api)}
  certificate: server.pem
  key: {places.key or "server.key"}
  # Whose signed requests are taken in at all. Like `readers`, read again on SIGHUP.
  clients: {CLIENTS_FILE}
  # Who may read, by a token (`keymoot coordinator token`) or, with `certificate: COMMON-NAME` in place of
  # `token_sha256`, by a client certificate of `client_ca`.
  readers:{(readers and chr(10) + readers.rstrip()) or " []"}
  # client_ca: readers-ca.pem

# Presignatures kept ready for each committee in use: filled up to `high`, `batch` at a time, when fewer than
# `low` are left.
pool:
  low: {low}
  high: {high}
  batch: {batch}

# A request fails when too few signers have been online for `signers_s` seconds, and waits `pool_s` for presignatures.
wait:
  signers_s: 5
  pool_s: 30

# Metrics for Prometheus, in plain, on loopback alone (packaging/METRICS.md).
# metrics: 127.0.0.1:9465
"""


def reader_yaml(name: str, digest: str) -> str:
    """One entry of `api.readers`; `digest`: hex of SHA-256 over a token's text."""
    return f"    - name: {quoted(name)}\n      token_sha256: {digest}\n"


def gate_yaml(setup: GateSetup) -> str:
    """The text of gate.yaml."""
    refused = ", ".join(quoted(address) for address in setup.refuse_destinations)
    return f"""# The reference gate handler: asked by one signer's enclave before every signature.
listen: {quoted(setup.listen)}
certificate: server.pem
key: server.key
# The handler's copy of the two secrets (`keymoot gate secret --generate`), mode 0600.
secrets: gate-secrets.json
rules:
  # Steps that it agrees to at all.
  kinds: [Signing, SigningBatch, KeyCreation]
  # Addresses that nothing is sent to.
  refuse_destinations: [{refused}]
"""


def client_yaml(setup: ClientSetup) -> str:
    """The text of client.yaml."""
    others = "".join(
        f"  - api: {quoted(api)}\n    ca: api-{number}-ca.pem\n" for number, (api, _) in enumerate(setup.others, 2)
    )
    others = "# Other coordinators of the network, asked in turn where the first does not answer.\nothers:" + (
        "\n" + others if others else " []\n"
    )
    return f"""# A client of the API: what `keymoot keys` and `keymoot sign` use.
network: {quoted(setup.network)}
api: {quoted(setup.api)}
# The CA of the API's certificate.
ca: api-ca.pem
# The pinned roster: key certificates are verified against it before a public key or an address is shown.
roster: roster.yaml
# The name (kid) and key that sign this client's requests; the signers' policies list its public half.
client: {quoted(setup.name)}
key: client.key
# What it shows to read; the coordinator knows the token's SHA-256.
token: {TOKEN_FILE}
{others}"""
