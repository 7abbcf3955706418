"""`keymoot enclave|signer|coordinator run`, `enclave accept-rollback` and `coordinator token`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.names import identified
from appliance.cli.output import Json, report, say_next, show_json

Config = Annotated[Path, typer.Option("--config", "-c", help="The process's YAML configuration file.")]

enclave = typer.Typer(help="The enclave: holds shares and decides; no network.", no_args_is_help=True)
signer = typer.Typer(help="The signer: connects an enclave outbound to coordinators.", no_args_is_help=True)
coordinator = typer.Typer(help="The coordinator: relays, and serves the API.", no_args_is_help=True)


@enclave.command("run")
def run_enclave(config: Config = Path("enclave.yaml")) -> None:
    """Run an enclave until it is told to stop. No code of the appliance is in its process."""
    from appliance.enrolment import enclave_command

    arguments = enclave_command("run", config)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(arguments[0], arguments)  # noqa: S606


@enclave.command("accept-rollback")
def accept_rollback(
    name: Annotated[str, typer.Argument(help="The signer that is refused.")],
    version: Annotated[int, typer.Option(min=0, help="The state with which it has started, as the refusal says.")],
    boot: Annotated[str, typer.Option(help="Which start of it, as the refusal says.")],
    config: Config = Path("enclave.yaml"),
    as_json: Json = False,
) -> None:
    """Accept the state of another signer whose disk was put back, or which ran twice.

    First ask its operator whether that is right. It is this enclave's word alone; the others need their own operator's.
    """
    from appliance.acceptance import accept
    from appliance.enrolment import require_file

    path = accept(require_file(config), name, version, boot)
    report(
        as_json,
        f"Accepted {name} at state {version}, for this one start of it ({path}).",
        {"file": str(path)},
        ("Wait a minute: the running enclave links with it; nothing needs to be restarted.",),
    )


@signer.command("run")
def run_signer(config: Config = Path("signer.yaml")) -> None:
    """Run a signer until it is told to stop. It listens on no network port."""
    from appliance.enrolment import require_file

    path = require_file(config)
    from appliance.signer.process import run

    run(path)


@coordinator.command("run")
def run_coordinator(config: Config = Path("coordinator.yaml")) -> None:
    """Run a coordinator until it is told to stop."""
    from appliance.enrolment import require_file

    path = require_file(config)
    from appliance.coordinator.server import run

    run(path)


@coordinator.command("readmit")
def readmit_signer(
    name: Annotated[str, typer.Argument(help="The convicted signer.")],
    config: Config = Path("coordinator.yaml"),
    as_json: Json = False,
) -> None:
    """Let a convicted signer into committees again. Every coordinator keeps its own list.

    First look at the evidence (`keymoot evidence verify`) and find out with its operator what happened.
    """
    from appliance.coordinator.config import load_config
    from appliance.coordinator.convictions import FILE, readmit
    from appliance.enrolment import require_file

    was = readmit(load_config(require_file(config)).state.parent / FILE, name)
    report(
        as_json,
        f"Readmitted {name}, which was convicted by {', '.join(was.by)}: {was.reason}.",
        {"readmitted": name},
        ("Wait some seconds: the running coordinator takes it up; nothing needs to be restarted.",),
    )


@coordinator.command("token")
def make_token(
    name: Annotated[str, typer.Argument(help="Who is to read: a name for logs and limits.")],
    out: Annotated[Path | None, typer.Option(help="The file for the token; NAME.token if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Make a token for reading the API, and print what coordinator.yaml must say of it. The token is shown nowhere."""
    from appliance.api.credentials import new_token, save_token, token_sha256
    from appliance.templates import reader_yaml

    identified(name, "NAME")
    token, file = new_token(), out or Path(f"{name}.token")
    save_token(token, file)
    digest = token_sha256(token)
    if as_json:
        show_json({"file": str(file), "name": name, "token_sha256": digest})
        return
    typer.echo(f"The token is in {file}. For coordinator.yaml, under api:")
    typer.echo("")
    typer.echo("  readers:")
    typer.echo(reader_yaml(name, digest).rstrip())
    say_next(
        "Enter it there, and kill -HUP the coordinator.",
        f"Hand {file} over where nobody else reads it.",
        "There: --token FILE, KEYMOOT_TOKEN_FILE=FILE, or token in client.yaml.",
    )
