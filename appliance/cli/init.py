"""`keymoot init signer|coordinator|client|gate`: writes commented configuration and keys, and says what comes next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from appliance.cli.names import identified, named
from appliance.cli.output import Json, report, say_next, working
from policies.errors import CallerError

if TYPE_CHECKING:
    from appliance.templates import CoordinatorAddress

OPERATOR = "operator"
TOKEN_LABEL = "keymoot"  # noqa: S105
SOFTHSM_LIB = "/usr/lib/softhsm/libsofthsm2.so"

app = typer.Typer(help="Write the configuration of a signer, a coordinator, a client or a gate.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(help="Where to write; made if it is not there.")]
Network = Annotated[str, typer.Option(help="The network's name.")]


@app.command("signer")
def init_signer(
    directory: Directory,
    network: Network,
    name: Annotated[str, typer.Option(help="The signer's name in the roster: a-z, 0-9 and -.")],
    operator: Annotated[str, typer.Option(help="The organisation that runs it.")],
    coordinator: Annotated[list[str], typer.Option(help="NAME=https://HOST:PORT of a coordinator; repeatable.")],
    coordinator_ca: Annotated[list[Path], typer.Option(help="The CA of each coordinator, in the same order.")],
    pin: Annotated[str, typer.Option(help="The HSM's PIN: file:PATH or credential:NAME, never the PIN itself.")],
    hsm_lib: Annotated[str, typer.Option("--lib", "--hsm-lib", help="The PKCS#11 module.")] = SOFTHSM_LIB,
    token_label: Annotated[str, typer.Option(help="The HSM token's label.  [default: keymoot]")] = "",
    slot: Annotated[int | None, typer.Option(help="The token's slot, in place of its label.")] = None,
    init_args: Annotated[
        str | None, typer.Option(help="Arguments of C_Initialize; NSS: \"configdir='sql:/DIRECTORY'\".")
    ] = None,
    accept_key_export: Annotated[
        bool, typer.Option("--accept-key-export", help="Use a module that exports keys marked non-extractable (NSS).")
    ] = False,
    gate: Annotated[str, typer.Option(help="URL of the operator's gate; empty: no gate.")] = "",
    gate_ca: Annotated[Path | None, typer.Option(help="The CA of the gate's certificate.")] = None,
    as_json: Json = False,
) -> None:
    """Write a signer's and its enclave's configuration, and make its keys in the HSM."""
    from appliance import configure, enrolment, templates
    from appliance.signer.config import load_config

    named(network, "--network")
    named(name, "--name")
    if len(coordinator) != len(coordinator_ca):
        raise CallerError("give --coordinator-ca once for each --coordinator, in the same order")
    if bool(gate) != (gate_ca is not None):
        raise CallerError("give --gate and --gate-ca together, or neither")
    if token_label and slot is not None:
        raise CallerError("name the token by --token-label or by --slot, one of them")
    hsm = templates.Hsm(hsm_lib, token_label or TOKEN_LABEL, _pin(pin, directory), slot, init_args, accept_key_export)
    setup = templates.SignerSetup(
        network=network,
        name=name,
        coordinators=tuple(_coordinator(text, ca) for text, ca in zip(coordinator, coordinator_ca, strict=True)),
        hsm=hsm,
        gate=templates.GateAddress(gate, configure.read_ca(gate_ca, "the gate's CA")) if gate_ca else None,
    )
    with configure.undone_on_failure(directory), working("Making the signer's keys in its HSM…"):
        configure.write_signer(directory, setup)
        load_config(directory / "signer.yaml")
        identity, profile = enrolment.provision(directory, network, name, operator)
    steps = [
        f"Send {directory / enrolment.IDENTITY_FILE} to the other operators; tell them the fingerprint by telephone.",
        f"Send {directory / 'ca.pem'} to the coordinator's operator.",
        f"Put roster.yaml (keymoot roster assemble) and policy.yaml into {directory}.",
    ]
    if gate:
        steps.append(
            f"Set the gate's secrets: keymoot gate secret --config {directory / 'enclave.yaml'} --generate FILE"
        )
    steps += [
        f"Start: keymoot enclave run -c {directory / 'enclave.yaml'}",
        f"Start: keymoot signer run -c {directory / 'signer.yaml'}",
        f"See whether all is well: keymoot status {directory}",
    ]
    report(
        as_json,
        f"Signer {name} of network {network} is set up in {directory}.",
        {"directory": str(directory), "fingerprint": identity.fingerprint, "sealing": profile},
        steps,
    )


@app.command("coordinator")
def init_coordinator(
    directory: Directory,
    network: Network,
    name: Annotated[str, typer.Option(help="The coordinator's name: a-z, 0-9 and -.")] = "coordinator",
    host: Annotated[list[str] | None, typer.Option(help="DNS name it is reached by; repeatable.")] = None,
    address: Annotated[list[str] | None, typer.Option(help="IP address it is reached by; repeatable.")] = None,
    signers_listen: Annotated[str, typer.Option(help="ADDRESS:PORT for signers.")] = "0.0.0.0:8443",
    api_listen: Annotated[str, typer.Option(help="ADDRESS:PORT for clients.")] = "127.0.0.1:8080",
    as_json: Json = False,
) -> None:
    """Write a coordinator's configuration and certificates, and its operator's own token for reading."""
    from appliance import configure, templates
    from appliance.api.credentials import new_token, save_token, token_sha256
    from appliance.coordinator.config import load_config

    named(network, "--network")
    named(name, "--name")
    _listening(signers_listen, "--signers-listen")
    _listening(api_listen, "--api-listen")
    token = new_token()
    setup = templates.CoordinatorSetup(
        network=network,
        name=name,
        names=tuple(host or ("localhost",)),
        addresses=tuple(address or ("127.0.0.1",)),
        listen_signers=signers_listen,
        listen_api=api_listen,
        readers=((OPERATOR, token_sha256(token)),),
    )
    with configure.undone_on_failure(directory):
        configure.write_coordinator(directory, setup)
        save_token(token, directory / f"{OPERATOR}.token")
        load_config(directory / "coordinator.yaml")
    report(
        as_json,
        f"Coordinator {name} of network {network} is set up in {directory}.",
        {"directory": str(directory)},
        (
            f"Send {directory / 'ca.pem'} to every signer's operator and to the clients.",
            f"Collect the operators' ca.pem into one file: cat */ca.pem > {directory / 'signers-ca.pem'}",
            f"Put roster.yaml (keymoot roster assemble) into {directory}.",
            f"Enter what `keymoot init client` prints into {directory / templates.CLIENTS_FILE} and coordinator.yaml.",
            f"Start: keymoot coordinator run -c {directory / 'coordinator.yaml'}",
        ),
    )


@app.command("client")
def init_client(
    directory: Directory,
    network: Network,
    name: Annotated[str, typer.Option(help="The client's name (kid), as policies will list it.")],
    api: Annotated[
        list[str], typer.Option(help="https://HOST:PORT of a coordinator's API; several are asked in turn.")
    ],
    api_ca: Annotated[list[Path], typer.Option(help="The CA of the API's certificate, one for each --api.")],
    as_json: Json = False,
) -> None:
    """Write a client's profile and a new key, and print what the signers' policies must say."""
    from appliance import configure, templates
    from appliance.api.credentials import token_sha256
    from appliance.api.jws import base64url
    from appliance.profile import ProfileFile
    from policies.load import load_yaml

    named(network, "--network")
    identified(name, "--name")
    for url in api:
        if not url.startswith("https://"):
            raise CallerError(f"--api {url}: the API is served over TLS alone: write it as https://HOST:PORT")
    if len(api) != len(api_ca):
        raise CallerError("give --api-ca once for each --api, in the same order")
    first, *others = [(url, configure.read_ca(ca, "the API's CA")) for url, ca in zip(api, api_ca, strict=True)]
    setup = templates.ClientSetup(network, name, *first, others=tuple(others))
    with configure.undone_on_failure(directory):
        key = configure.write_client(directory, setup)
        load_yaml(directory / "client.yaml", ProfileFile)
    public_key, token_digest = base64url(key.public_bytes), token_sha256(setup.token)
    steps = (
        "Have every signer's operator add this client and a rule for it to policy.yaml.",
        "Have the coordinator's operator add it to both files, and kill -HUP the coordinator.",
        f"Put roster.yaml into {directory}, and check its fingerprints with the operators: keymoot roster show",
        f"keymoot keys create --profile {directory / 'client.yaml'} --label LABEL",
    )
    if as_json:
        client = {"id": name, "alg": key.algorithm, "public_key": public_key}
        reader = {"name": name, "token_sha256": token_digest}
        report(as_json, "", {"directory": str(directory), "client": client, "reader": reader}, steps)
        return
    typer.echo(f"Client {name} of network {network} is set up in {directory}.")
    typer.echo("")
    typer.echo(f"For every signer's policy.yaml, and the coordinator's {templates.CLIENTS_FILE}:")
    typer.echo("")
    typer.echo("clients:")
    typer.echo(f"  - id: {templates.quoted(name)}")
    typer.echo(f"    alg: {key.algorithm}")
    typer.echo(f"    public_key: {templates.quoted(public_key)}")
    typer.echo("")
    typer.echo("For the coordinator's coordinator.yaml, under api:")
    typer.echo("")
    typer.echo("  readers:")
    typer.echo(templates.reader_yaml(name, token_digest).rstrip())
    say_next(*steps)


@app.command("gate")
def init_gate(
    directory: Directory,
    name: Annotated[str, typer.Option(help="The gate's name, for its certificate.")] = "gate",
    host: Annotated[list[str] | None, typer.Option(help="DNS name it is reached by; repeatable.")] = None,
    address: Annotated[list[str] | None, typer.Option(help="IP address it is reached by; repeatable.")] = None,
    listen: Annotated[str, typer.Option(help="ADDRESS:PORT for the signer.")] = "127.0.0.1:8090",
    as_json: Json = False,
) -> None:
    """Write the configuration and certificates of the reference gate handler."""
    from appliance import configure, templates
    from appliance.gate.config import load_config

    _listening(listen, "--listen")

    setup = templates.GateSetup(
        name, listen, names=tuple(host or ("localhost",)), addresses=tuple(address or ("127.0.0.1",))
    )
    with configure.undone_on_failure(directory):
        configure.write_gate(directory, setup)
        load_config(directory / "gate.yaml")
    report(
        as_json,
        f"Gate {name} is set up in {directory}.",
        {"directory": str(directory)},
        (
            f"Give {directory / 'ca.pem'} to the signer: keymoot setup --role signer … "
            "--gate https://HOST:PORT/validate --gate-ca CA",
            "At the signer, once it has roster and policy: keymoot setup --role signer … --gate-secrets-out FILE; move "
            f"FILE to {directory / 'gate-secrets.json'}",
            f"Start: keymoot gate serve -c {directory / 'gate.yaml'}",
        ),
    )


def _coordinator(text: str, ca: Path) -> CoordinatorAddress:
    from appliance import configure, templates

    name, equals, url = text.partition("=")
    if not equals or not url.startswith("https://"):
        raise CallerError(f"--coordinator {text}: write it as NAME=https://HOST:PORT")
    named(name, "--coordinator")
    return templates.CoordinatorAddress(name, url, configure.read_ca(ca, "the coordinator's CA"))


def _listening(text: str, option: str) -> None:
    """Check where a process is to listen. Raises `CallerError`."""
    from appliance.coordinator.config import Listen, split_listen

    try:
        split_listen(msgspec.convert(text, Listen))
    except msgspec.ValidationError:
        raise CallerError(f"{option} {text}: write it as ADDRESS:PORT, such as 127.0.0.1:8080") from None


def _pin(reference: str, directory: Path) -> str:
    """A PIN reference as enclave.yaml takes it: a path that is not in `directory` is taken from here."""
    kind, _, path = reference.partition(":")
    if kind != "file" or not path or (directory / path).exists():
        return reference
    return f"file:{Path(path).resolve()}"
