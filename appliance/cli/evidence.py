"""`keymoot evidence`: what a signer's file of evidence proves, to anybody who has the roster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from appliance.cli import EXIT_FAILED, printable
from appliance.cli.output import Json, show_fields, show_json, working
from policies.errors import CallerError, Unavailable

app = typer.Typer(help="Evidence against a signer that broke a protocol.", no_args_is_help=True)


class Signer(msgspec.Struct, frozen=True):
    """A signer, as the roster lists it."""

    index: int
    name: str
    operator: str
    fingerprint: str


class Verified(msgspec.Struct, frozen=True):
    """What `enclave verify-evidence` prints. `group`: somebody of it cheated, and nobody of it is convicted."""

    proves: bool
    reason: str
    network: str
    ceremony: str
    context: str
    step: str
    convicted: tuple[Signer, ...]
    group: tuple[Signer, ...]


@app.callback()
def _group() -> None:
    """Keeps `verify` a subcommand."""


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="A file from a signer's state/evidence.")],
    roster: Annotated[Path, typer.Option(help="The roster you have pinned.")] = Path("roster.yaml"),
    as_json: Json = False,
) -> None:
    """Judge a file of evidence, offline: signatures up to the HSMs' identity keys, and the protocol's own rules.

    Exit codes: 0 it convicts a signer or names a group, 1 it proves nothing, 2 the caller's mistake.
    """
    from appliance import enrolment

    for path in (file, roster):
        if not path.is_file():
            raise CallerError(f"no file {path}")
    command = [sys.executable, "-I", "-m", "enclave", "verify-evidence"]
    command += ["--evidence", str(file.resolve()), "--roster", str(roster.resolve())]
    with working("Judging the evidence…"):
        output = enrolment.run_enclave_tool(command)
    try:
        verified = msgspec.json.decode(output, type=Verified)
    except msgspec.DecodeError as error:
        raise Unavailable(f"`enclave verify-evidence` answered something unexpected: {error}", "report it") from None
    if as_json:
        show_json(verified)
    else:
        _show(verified)
    if not verified.proves:
        raise typer.Exit(EXIT_FAILED)


def _show(verified: Verified) -> None:
    if not verified.proves:
        typer.echo(f"It proves nothing: {printable(verified.reason)}.")
        return
    for signer in verified.convicted:
        who = printable(f"{signer.name}, {signer.operator}")
        typer.echo(f"Signer {signer.index} ({who}) broke the protocol.")
    if verified.group:
        names = ", ".join(f"{signer.index} ({signer.name})" for signer in verified.group)
        typer.echo(f"Somebody of these broke the protocol, and nobody of them is convicted: {names}.")
    typer.echo("")
    show_fields(
        {
            "what": verified.reason,
            "step": f"SPEC {verified.step}",
            "ceremony": f"{verified.ceremony} {verified.context}",
            "network": verified.network,
            **{f"key of {signer.name}": signer.fingerprint for signer in (*verified.convicted, *verified.group)},
        }
    )
