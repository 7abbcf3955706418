"""`keymoot enclave|signer|coordinator run`."""

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
