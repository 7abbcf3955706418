"""`keymoot init signer|coordinator|client|gate`: writes commented configuration and keys, and says what comes next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.output import say_next, show_fields
from policies.errors import CallerError

if TYPE_CHECKING:
    from appliance.configure import CoordinatorAddress

OPERATOR = "operator"
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
    token_label: Annotated[str, typer.Option(help="The HSM token's label.")] = "keymoot",  # noqa: S107
    hsm_lib: Annotated[str, typer.Option(help="The PKCS#11 module.")] = SOFTHSM_LIB,
    gate: Annotated[str, typer.Option(help="URL of the operator's gate; empty: no gate.")] = "",
    gate_ca: Annotated[Path | None, typer.Option(help="The CA of the gate's certificate.")] = None,
) -> None:
    """Write a signer's and its enclave's configuration, and make its keys in the HSM."""
    from appliance import configure, enrolment

    if len(coordinator) != len(coordinator_ca):
        raise CallerError("give --coordinator-ca once for each --coordinator, in the same order")
    if bool(gate) != (gate_ca is not None):
        raise CallerError("give --gate and --gate-ca together, or neither")
    setup = configure.SignerSetup(
        network=network,
        name=name,
        coordinators=tuple(_coordinator(text, ca) for text, ca in zip(coordinator, coordinator_ca, strict=True)),
        hsm=configure.Hsm(hsm_lib, token_label, pin),
        gate=configure.GateAddress(gate, configure.read_bytes(gate_ca, "the gate's CA")) if gate_ca else None,
    )
    configure.write_signer(directory, setup)
    identity, profile = enrolment.provision(directory, network, name, operator)
    typer.echo(f"Signer {name} of network {network} is set up in {directory}.")
    show_fields({"fingerprint": identity.fingerprint, "sealing": profile})
    steps = [
        f"Send {directory / enrolment.IDENTITY_FILE} to the other operators; tell them the fingerprint by telephone.",
        f"Send {directory / 'ca.pem'} to the coordinator's operator.",
        f"Put roster.yaml (keymoot roster assemble) and policy.yaml into {directory}.",
    ]
    if gate:
        steps.append(
            f"Set the gate's secrets: keymoot gate secret --config {directory / 'enclave.yaml'} --generate FILE"
        )
    steps.append(
        f"Start: keymoot enclave run -c {directory / 'enclave.yaml'}, keymoot signer run -c {directory / 'signer.yaml'}"
    )
    say_next(*steps)


@app.command("coordinator")
def init_coordinator(
    directory: Directory,
    network: Network,
    name: Annotated[str, typer.Option(help="The coordinator's name: a-z, 0-9 and -.")] = "coordinator",
    host: Annotated[list[str] | None, typer.Option(help="DNS name it is reached by; repeatable.")] = None,
    address: Annotated[list[str] | None, typer.Option(help="IP address it is reached by; repeatable.")] = None,
    signers_listen: Annotated[str, typer.Option(help="ADDRESS:PORT for signers.")] = "0.0.0.0:8443",
    api_listen: Annotated[str, typer.Option(help="ADDRESS:PORT for clients.")] = "127.0.0.1:8080",
) -> None:
    """Write a coordinator's configuration and certificates, and its operator's own token for reading."""
    from appliance import configure
    from appliance.api.credentials import new_token, save_token, token_sha256

    token = new_token()
    setup = configure.CoordinatorSetup(
        network=network,
        name=name,
        names=tuple(host or ("localhost",)),
        addresses=tuple(address or ("127.0.0.1",)),
        listen_signers=signers_listen,
        listen_api=api_listen,
        readers=((OPERATOR, token_sha256(token)),),
    )
    configure.write_coordinator(directory, setup)
    save_token(token, directory / f"{OPERATOR}.token")
    typer.echo(f"Coordinator {name} of network {network} is set up in {directory}.")
    say_next(
        f"Send {directory / 'ca.pem'} to every signer's operator and to the clients.",
        f"Collect the operators' ca.pem into one file: cat */ca.pem > {directory / 'signers-ca.pem'}",
        f"Put roster.yaml (keymoot roster assemble) into {directory}.",
        f"Enter what `keymoot init client` prints into {directory / configure.CLIENTS_FILE} and coordinator.yaml.",
        f"Start: keymoot coordinator run -c {directory / 'coordinator.yaml'}",
    )


@app.command("client")
def init_client(
    directory: Directory,
    network: Network,
    name: Annotated[str, typer.Option(help="The client's name (kid), as policies will list it.")],
    api: Annotated[str, typer.Option(help="https://HOST:PORT of the coordinator's API.")],
    api_ca: Annotated[Path, typer.Option(help="The CA of the API's certificate.")],
) -> None:
    """Write a client's profile and a new key, and print what the signers' policies must say."""
    from appliance import configure
    from appliance.api.credentials import token_sha256
    from appliance.api.jws import base64url

    setup = configure.ClientSetup(network, name, api, configure.read_bytes(api_ca, "the API's CA"))
    key = configure.write_client(directory, setup)
    typer.echo(f"Client {name} of network {network} is set up in {directory}.")
    typer.echo("")
    typer.echo(f"For every signer's policy.yaml, and the coordinator's {configure.CLIENTS_FILE}:")
    typer.echo("")
    typer.echo("clients:")
    typer.echo(f"  - id: {configure.quoted(name)}")
    typer.echo(f"    alg: {key.algorithm}")
    typer.echo(f"    public_key: {configure.quoted(base64url(key.public_bytes))}")
    typer.echo("")
    typer.echo("For the coordinator's coordinator.yaml, under api:")
    typer.echo("")
    typer.echo("  readers:")
    typer.echo(configure.reader_yaml(name, token_sha256(setup.token)).rstrip())
    say_next(
        "Have every signer's operator add this client and a rule for it to policy.yaml.",
        "Have the coordinator's operator add it to both files, and kill -HUP the coordinator.",
        f"Put roster.yaml into {directory}, and check its fingerprints with the operators: keymoot roster show",
        f"keymoot keys create --profile {directory / 'client.yaml'} --label LABEL",
    )


@app.command("gate")
def init_gate(
    directory: Directory,
    name: Annotated[str, typer.Option(help="The gate's name, for its certificate.")] = "gate",
    host: Annotated[list[str] | None, typer.Option(help="DNS name it is reached by; repeatable.")] = None,
    address: Annotated[list[str] | None, typer.Option(help="IP address it is reached by; repeatable.")] = None,
    listen: Annotated[str, typer.Option(help="ADDRESS:PORT for the signer.")] = "127.0.0.1:8090",
) -> None:
    """Write the configuration and certificates of the reference gate handler."""
    from appliance import configure

    setup = configure.GateSetup(
        name, listen, names=tuple(host or ("localhost",)), addresses=tuple(address or ("127.0.0.1",))
    )
    configure.write_gate(directory, setup)
    typer.echo(f"Gate {name} is set up in {directory}.")
    say_next(
        f"Give {directory / 'ca.pem'} to the signer: keymoot init signer … --gate https://HOST:PORT/validate --gate-ca",
        f"At the signer: keymoot gate secret --generate FILE; move FILE to {directory / 'gate-secrets.json'}",
        f"Start: keymoot gate serve -c {directory / 'gate.yaml'}",
    )


def _coordinator(text: str, ca: Path) -> CoordinatorAddress:
    from appliance import configure

    name, equals, url = text.partition("=")
    if not equals or not url.startswith("https://"):
        raise CallerError(f"--coordinator {text}: write it as NAME=https://HOST:PORT")
    return configure.CoordinatorAddress(name, url, configure.read_bytes(ca, "the coordinator's CA"))
