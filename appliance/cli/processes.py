"""`keymoot enclave|signer|coordinator run`, and `keymoot enclave accept-rollback`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

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
) -> None:
    """Accept the state of another signer whose disk was put back, or which ran twice.

    First ask its operator whether that is right. It is this enclave's word alone; the others need their own operator's.
    """
    from appliance.acceptance import accept
    from appliance.enrolment import require_file

    path = accept(require_file(config), name, version, boot)
    typer.echo(f"Accepted {name} at state {version}, for this one start of it ({path}).")
    typer.echo("The running enclave links with it within a minute; nothing needs to be restarted.")


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
