"""The files of a loopback network: directories, tokens, certificates, configurations, roster, policy, secrets."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from appliance import configure, enrolment, pki, templates
from appliance.api.credentials import new_token, token_sha256
from appliance.api.jws import base64url
from policies.errors import Unavailable
from policies.roster import Roster

LOOPBACK = "127.0.0.1"
SOFTHSM_LIBS = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
)
TOKEN_LABEL = "keymoot"  # noqa: S105
COORDINATOR = "coordinator"
CLIENT = "loopback"


@dataclass(frozen=True)
class Plan:
    """What to set up. `refuse`: signer index → destinations its gate refuses. `gate` off: signers without a gate.
    `coordinator_port`: where signers look for the coordinator, if not where it listens."""

    root: Path
    network: str
    signers: int
    tolerate: int
    gate: bool
    pool: tuple[int, int, int]
    refuse: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    coordinators: int = 1
    coordinator_port: int | None = None

    @property
    def coordinator_names(self) -> tuple[str, ...]:
        """`coordinator`, `coordinator-2`, and so on; also their directories."""
        return (COORDINATOR, *(f"{COORDINATOR}-{number}" for number in range(2, self.coordinators + 1)))

    @property
    def indices(self) -> range:
        """Party indices."""
        return range(1, self.signers + 1)

    def signer(self, index: int) -> Path:
        """Configuration directory of a signer and its enclave."""
        return self.root / f"signer-{index}"

    def gate_directory(self, index: int) -> Path:
        """Configuration directory of a signer's gate."""
        return self.root / f"gate-{index}"

    def environment(self, index: int) -> dict[str, str]:
        """Environment of a signer's enclave: its own software HSM."""
        return {**os.environ, "SOFTHSM2_CONF": str(self.signer(index) / "softhsm2.conf")}


@dataclass(frozen=True)
class Written:
    """Where things ended up."""

    roster: Roster
    coordinators: Mapping[str, templates.CoordinatorSetup]
    api_ports: Mapping[str, int]
    gate_ports: tuple[int, ...]


def write_network(plan: Plan) -> Written:
    """Write everything. Raises `Unavailable` without SoftHSM, `CallerError` for an impossible plan."""
    ports = iter(free_ports(2 * plan.coordinators + (plan.signers if plan.gate else 0)))
    token = new_token()
    setups = {name: _coordinator_setup(plan, name, next(ports), next(ports), token) for name in plan.coordinator_names}
    gate_ports = tuple(ports)
    for name, setup in setups.items():
        configure.write_coordinator(plan.root / name, setup)
    addresses = tuple(_address(plan, setup) for setup in setups.values())
    for index in plan.indices:
        _write_signer(plan, index, addresses, gate_ports[index - 1] if plan.gate else None)
    bundle = b"".join((plan.signer(index) / "ca.pem").read_bytes() for index in plan.indices)
    for name in setups:
        pki.write_new(plan.root / name / "signers-ca.pem", bundle)
    apis = [
        (f"https://{setup.listen_api}", address.ca_pem)
        for setup, address in zip(setups.values(), addresses, strict=True)
    ]
    client = configure.write_client(
        plan.root / "client",
        templates.ClientSetup(plan.network, CLIENT, *apis[0], others=tuple(apis[1:]), token=token),
    )
    roster = _provision(plan)
    policy = _policy(base64url(client.public_bytes))
    coordinators = (plan.root / name for name in setups)
    for directory in (*coordinators, plan.root / "client", *map(plan.signer, plan.indices)):
        pki.write_new(directory / "roster.yaml", enrolment.roster_yaml(roster).encode())
    for index in plan.indices:
        pki.write_new(plan.signer(index) / "policy.yaml", policy.encode())
    for name in setups:
        (plan.root / name / templates.CLIENTS_FILE).write_text(policy)
    if plan.gate:
        _each(plan, lambda index: _seal_gate_secret(plan, index))
    api_ports = {name: int(setup.listen_api.rpartition(":")[2]) for name, setup in setups.items()}
    return Written(roster, setups, api_ports, gate_ports)


def _coordinator_setup(
    plan: Plan, name: str, signers_port: int, api_port: int, token: str
) -> templates.CoordinatorSetup:
    return templates.CoordinatorSetup(
        network=plan.network,
        name=name,
        listen_signers=f"{LOOPBACK}:{signers_port}",
        listen_api=f"{LOOPBACK}:{api_port}",
        pool=plan.pool,
        readers=((CLIENT, token_sha256(token)),),
    )


def _address(plan: Plan, setup: templates.CoordinatorSetup) -> templates.CoordinatorAddress:
    ca = (plan.root / setup.name / "ca.pem").read_bytes()
    where = setup.listen_signers if plan.coordinator_port is None else f"{LOOPBACK}:{plan.coordinator_port}"
    return templates.CoordinatorAddress(setup.name, f"https://{where}", ca)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _write_signer(
    plan: Plan, index: int, coordinators: tuple[templates.CoordinatorAddress, ...], gate_port: int | None
) -> None:
    gate = None
    if gate_port is not None:
        gate_setup = templates.GateSetup(
            f"gate-{index}", f"{LOOPBACK}:{gate_port}", refuse_destinations=plan.refuse.get(index, ())
        )
        gate_ca = configure.write_gate(plan.gate_directory(index), gate_setup)
        gate = templates.GateAddress(f"https://{LOOPBACK}:{gate_port}/validate", gate_ca)
    hsm = templates.Hsm(_softhsm_lib(), TOKEN_LABEL, "file:pin")
    configure.write_signer(
        plan.signer(index),
        templates.SignerSetup(plan.network, f"signer-{index}", coordinators, hsm, gate),
    )
    _make_token(plan, index)


def _softhsm_lib() -> str:
    for lib in SOFTHSM_LIBS:
        if Path(lib).exists():
            return lib
    raise Unavailable("SoftHSM is not installed", "run `apt-get install softhsm2`")


def _make_token(plan: Plan, index: int) -> None:
    """A token directory of its own: two processes on one SoftHSM token get in each other's way."""
    directory = plan.signer(index)
    tool = shutil.which("softhsm2-util")
    if tool is None:
        raise Unavailable("softhsm2-util is not installed", "run `apt-get install softhsm2`")
    (directory / "tokens").mkdir(mode=0o700)
    conf = f"directories.tokendir = {directory / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    pki.write_new(directory / "softhsm2.conf", conf.encode())
    pin = secrets.token_hex(8)
    pki.write_new(directory / "pin", pin.encode(), pki.SECRET_MODE)
    # The PIN is an argument here: SoftHSM's tool takes it no other way without a terminal. The token is thrown away.
    subprocess.run(  # noqa: S603
        [tool, "--init-token", "--free", "--label", TOKEN_LABEL, "--so-pin", secrets.token_hex(8), "--pin", pin],
        env=plan.environment(index),
        check=True,
        capture_output=True,
    )


def _provision(plan: Plan) -> Roster:
    def one(index: int) -> enrolment.Identity:
        identity, _ = enrolment.provision(
            plan.signer(index), plan.network, f"signer-{index}", f"operator {index}", plan.environment(index)
        )
        return identity

    return enrolment.make_roster(_each(plan, one), plan.tolerate)


def _seal_gate_secret(plan: Plan, index: int) -> None:
    made = enrolment.new_secrets()
    pki.write_new(plan.gate_directory(index) / "gate-secrets.json", made, pki.SECRET_MODE)
    command = enrolment.enclave_command("seal-gate-secret", plan.signer(index) / "enclave.yaml")
    enrolment.run_enclave_tool(command, made, plan.environment(index))


def _each(plan: Plan, work):  # type: ignore[no-untyped-def]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(work, plan.indices))


def _policy(public_key: str) -> str:
    return f"""# The policy of a loopback network: its one client may do everything.
version: 1
clients:
  - id: {templates.quoted(CLIENT)}
    alg: Ed25519
    public_key: {templates.quoted(public_key)}
rules:
  - name: everything
    clients: [{templates.quoted(CLIENT)}]
    actions: [create-key, sign]
    labels: ["**"]
    kinds: [Hash, HashBatch, Message, EthereumTransaction, Eip712TypedData, BitcoinBip143Preimage]
    blind: true
    derivation_paths: [m, m/**]
"""
