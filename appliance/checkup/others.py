"""A coordinator's and a gate's directory on this host: configuration, certificates, whether somebody listens."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from appliance.checkup.findings import Finding, note, problem
from appliance.checkup.host import certificates
from appliance.checkup.probe import tls_failure
from appliance.coordinator.authorities import Authorities
from appliance.coordinator.config import CoordinatorConfig, load_config, load_roster, split_listen
from appliance.gate.config import load_config as load_gate
from appliance.gate.config import load_secrets
from appliance.tls import client_context
from policies.errors import CallerError

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a listener on all is asked


def check_coordinator(directory: Path, now: datetime.datetime) -> Iterator[Finding]:
    """The coordinator whose coordinator.yaml is in `directory`, and its certificates."""
    yield from coordinator(directory)
    yield from certificates(_name_of(directory), directory, now)


def coordinator(directory: Path) -> Iterator[Finding]:
    """Whether it can start, and answers."""
    name = directory.resolve().name
    try:
        config = load_config(directory / "coordinator.yaml")
        name = config.name
        load_roster(config)
        if not config.signers.client_ca.is_file():
            raise CallerError(f"the signers' CAs are missing: put their ca.pem into {config.signers.client_ca}")
    except CallerError as error:
        yield problem(name, str(error), "Correct it; the coordinator does not start with it.")
    else:
        for what, listen in (("clients", config.api.listen), ("signers", config.signers.listen)):
            if why := _listens(listen, directory / "ca.pem"):
                yield problem(
                    name,
                    f"does not answer {what} on {listen}: {why}",
                    f"keymoot coordinator run -c {directory / 'coordinator.yaml'}; if it ends, its last line says why.",
                )


def _name_of(directory: Path) -> str:
    """A coordinator's name; its directory's where its configuration is broken."""
    try:
        return load_config(directory / "coordinator.yaml").name
    except CallerError:
        return directory.resolve().name


def check_gate(directory: Path, now: datetime.datetime) -> Iterator[Finding]:
    """The reference gate handler whose gate.yaml is in `directory`, and its certificates."""
    yield from gate(directory)
    yield from certificates(directory.resolve().name, directory, now)


def gate(directory: Path) -> Iterator[Finding]:
    """Whether it can start, and answers."""
    name = directory.resolve().name
    try:
        config = load_gate(directory / "gate.yaml")
        load_secrets(config.secrets)
    except CallerError as error:
        yield problem(name, str(error), "Correct it; the gate does not start with it.")
    else:
        if why := _listens(config.listen, directory / "ca.pem"):
            yield problem(
                name,
                f"does not answer on {config.listen}: {why}",
                f"keymoot gate serve -c {directory / 'gate.yaml'}; if it ends, its last line says why.",
            )


def authorities(name: str, config: CoordinatorConfig) -> Iterator[Finding]:
    """Whether another organisation's authority could let somebody in, in the place of a signer."""
    roster, files = load_roster(config), config.signers.authorities
    if not files:
        if len({signer.operator for signer in roster.signers}) > 1:
            yield note(
                name,
                "any of the signers' authorities may issue a certificate for any signer, and so stop it",
                "Say under signers.authorities in coordinator.yaml whose authority is whose.",
            )
        return
    for signer in roster.signers:
        if signer.name not in files:
            yield problem(
                name,
                f"signers.authorities names no authority of {signer.name}, who is refused",
                f"Add `{signer.name}: FILE` with the ca.pem of {signer.operator}.",
            )
    try:
        Authorities(files)
    except CallerError as error:
        yield problem(name, str(error), "Put the operator's ca.pem there; its signer is refused until then.")


def reached_at(listen: str, certificate: Path) -> str:
    """The URL by which this host reaches a listener of its own under a name that its `certificate` is good for.

    Raises `CallerError` where the certificate cannot be read.
    """
    host, port = split_listen(listen)
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise CallerError(f"the certificate {certificate} cannot be used: {error}") from None
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    known = [*addresses, *names.get_values_for_type(x509.DNSName)]
    wanted = next((name for name in (ANY_ADDRESS.get(host, host), "localhost") if name in known), "")
    name = wanted or next(iter(names.get_values_for_type(x509.DNSName) or known), host)
    return f"https://{f'[{name}]' if ':' in name else name}:{port}"


def _listens(listen: str, ca: Path) -> str:
    """Why nobody answers there; empty where somebody does. Names are for clients to check, not for this."""
    try:
        host, port = split_listen(listen)
        context = client_context(ca)
    except CallerError as error:
        return str(error)
    context.check_hostname = False
    host = ANY_ADDRESS.get(host, host)
    return tls_failure(f"https://{f'[{host}]' if ':' in host else host}:{port}", context)
