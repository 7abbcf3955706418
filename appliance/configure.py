"""Writes a process's configuration directory: commented YAML, certificates, keys with mode 0600.

`keymoot init` and the loopback network of demo, bench and system tests write the same files through this module.
Nothing that exists is overwritten. The texts are in `templates`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509

from appliance import pki
from appliance.api.credentials import save_token
from appliance.api.jws import ClientKey, generate_client_key, save_client_key
from appliance.templates import (
    CLIENTS_FILE,
    TOKEN_FILE,
    ClientSetup,
    CoordinatorSetup,
    GateSetup,
    SignerSetup,
    client_yaml,
    coordinator_yaml,
    enclave_yaml,
    gate_yaml,
    signer_yaml,
)
from policies.errors import CallerError

DIRECTORY_MODE = 0o700
OUR_SUFFIXES, OUR_NAMES = (".pem", ".key", ".yaml", ".token"), ("identity.json", "run", "state")
NO_CLIENTS = """# Whose signed requests this coordinator takes in: the clients of the signers' policies.
# `keymoot init client` prints what to write here. After a change: kill -HUP the coordinator.
version: 1
clients: []
# A coordinator looks at no rules.
rules: []
"""


def write_signer(directory: Path, setup: SignerSetup) -> None:
    """Write enclave.yaml, signer.yaml and the operator's CA with a client certificate. Raises `CallerError`."""
    make_directory(directory)
    ca = pki.make_ca(f"{setup.name} of {setup.network}")
    ca.write(directory / "ca.pem", directory / "ca.key")
    pki.issue(ca, setup.name, pki.Purpose.CLIENT).write(directory / "signer.pem", directory / "signer.key")
    for coordinator in setup.coordinators:
        pki.write_new(directory / f"{coordinator.name}-ca.pem", coordinator.ca_pem)
    if setup.gate is not None:
        pki.write_new(directory / "gate-ca.pem", setup.gate.ca_pem)
    pki.write_new(directory / "enclave.yaml", enclave_yaml(setup).encode())
    pki.write_new(directory / "signer.yaml", signer_yaml(setup).encode())
    if setup.places.state is None:
        make_directory(directory / "run")
        make_directory(directory / "state")


def write_coordinator(directory: Path, setup: CoordinatorSetup) -> None:
    """Write coordinator.yaml, the coordinator's CA and its certificate. Raises `CallerError`.

    `signers-ca.pem` is the bundle of the operators' CAs; it is written where `setup` has any.
    """
    make_directory(directory)
    ca = pki.make_ca(f"coordinator {setup.name} of {setup.network}")
    ca.write(directory / "ca.pem", directory / "ca.key")
    pki.issue(ca, setup.name, pki.Purpose.SERVER, names=setup.names, addresses=setup.addresses).write(
        directory / "server.pem", directory / "server.key"
    )
    if setup.signer_cas:
        pki.write_new(directory / "signers-ca.pem", b"".join(setup.signer_cas))
    pki.write_new(directory / CLIENTS_FILE, NO_CLIENTS.encode())
    pki.write_new(directory / "coordinator.yaml", coordinator_yaml(setup).encode())
    if setup.places.state is None:
        make_directory(directory / "state")


def write_gate(directory: Path, setup: GateSetup) -> bytes:
    """Write gate.yaml, a CA and the gate's certificate; returns the CA. Raises `CallerError`.

    `gate-secrets.json` comes from `keymoot gate secret --generate`.
    """
    make_directory(directory)
    ca = pki.make_ca(f"gate of {setup.name}")
    ca.write(directory / "ca.pem", directory / "ca.key")
    pki.issue(ca, setup.name, pki.Purpose.SERVER, names=setup.names, addresses=setup.addresses).write(
        directory / "server.pem", directory / "server.key"
    )
    pki.write_new(directory / "gate.yaml", gate_yaml(setup).encode())
    return ca.certificate_pem


def write_client(directory: Path, setup: ClientSetup) -> ClientKey:
    """Write client.yaml, its token, and a new Ed25519 client key, which is returned. Raises `CallerError`."""
    make_directory(directory)
    key = generate_client_key(setup.name)
    save_client_key(key, directory / "client.key")
    save_token(setup.token, directory / TOKEN_FILE)
    pki.write_new(directory / "api-ca.pem", setup.ca_pem)
    for number, (_, ca_pem) in enumerate(setup.others, 2):
        pki.write_new(directory / f"api-{number}-ca.pem", ca_pem)
    pki.write_new(directory / "client.yaml", client_yaml(setup).encode())
    return key


@contextmanager
def undone_on_failure(directory: Path) -> Iterator[None]:
    """Where the block fails, remove from `directory` the files of ours that came into it meanwhile, so that the same
    command can be given once more."""
    before, was_there = _ours(directory), directory.exists()
    try:
        yield
    except BaseException:
        for path in _ours(directory) - before:
            with suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        if not was_there:
            with suppress(OSError):
                directory.rmdir()
        raise


def _ours(directory: Path) -> set[Path]:
    """What is in `directory` by a name that this module gives."""
    if not directory.is_dir():
        return set()
    return {path for path in directory.iterdir() if path.suffix in OUR_SUFFIXES or path.name in OUR_NAMES}


def make_directory(directory: Path) -> None:
    """Make `directory` for its owner alone, if it is not there. Raises `CallerError`."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
    except OSError as error:
        raise CallerError(f"cannot make {directory}: {error.strerror}") from None


def read_bytes(path: Path, what: str) -> bytes:
    """The content of `path`. Raises `CallerError` that says `what` was wanted there."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CallerError(f"cannot read {what} from {path}: {error.strerror}") from None


def read_ca(path: Path, what: str) -> bytes:
    """The certificates in `path`. Raises `CallerError` that says `what` was wanted there."""
    data = read_bytes(path, what)
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError:
        raise CallerError(f"{path} holds no certificate in PEM: it should be {what}") from None
    return data
