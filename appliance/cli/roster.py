"""`keymoot roster assemble|show|check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import printable
from appliance.cli.output import Json, say_next, show_json
from policies.errors import CallerError
from policies.roster import Roster, describe_scheme

app = typer.Typer(help="The roster: which signers form a network, pinned by every operator.", no_args_is_help=True)

RosterFile = Annotated[Path, typer.Argument(help="The roster file.")]


@app.command("assemble")
def assemble(
    identities: Annotated[list[Path], typer.Argument(help="identity.json of every signer, in the order of indices.")],
    tolerate: Annotated[int, typer.Option(help="How many signers may be corrupted (t).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the roster.")] = Path("roster.yaml"),
    as_json: Json = False,
) -> None:
    """Make a roster from the identities that the signers' operators sent."""
    from appliance import enrolment, pki

    made = enrolment.make_roster([enrolment.read_identity(path) for path in identities], tolerate)
    pki.write_new(out, enrolment.roster_yaml(made).encode())
    steps = (
        "Compare every fingerprint with its operator over another channel (telephone, in person).",
        f"Give {out} to all operators, the coordinator and the clients; each runs `keymoot roster check {out}`.",
    )
    if as_json:
        show_json({"file": str(out), **_described(made), "next": steps})
        return
    typer.echo(f"Wrote {out}.")
    _show(made)
    say_next(*steps)


@app.command("show")
def show(file: RosterFile = Path("roster.yaml"), as_json: Json = False) -> None:
    """Show what a roster means: scheme, signers, fingerprints, digest."""
    loaded = load_roster(file)
    if as_json:
        show_json(_described(loaded))
    else:
        _show(loaded)


@app.command("check")
def check(
    file: RosterFile = Path("roster.yaml"),
    identity: Annotated[
        list[Path] | None, typer.Option(help="An identity.json that must be listed as it is; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a roster's form and, with --identity, that a signer is listed with exactly its key."""
    from appliance import enrolment

    loaded = load_roster(file)
    for path in identity or []:
        wanted = enrolment.read_identity(path)
        if wanted.network != loaded.network:
            raise CallerError(f"{path} is of network {wanted.network}, the roster of {loaded.network}")
        listed = next((signer for signer in loaded.signers if signer.name == wanted.name), None)
        if listed is None:
            raise CallerError(f"{file} lists no signer {wanted.name}: ask who assembled it")
        if listed.fingerprint != enrolment.fingerprint_of(wanted):
            raise CallerError(
                f"{file} lists another key for {wanted.name} ({listed.fingerprint}): do not use this roster"
            )
    if as_json:
        show_json({"file": str(file), "checked": [str(path) for path in identity or []], **_described(loaded)})
        return
    typer.echo(f"{file} is a roster of network {loaded.network}: {describe_scheme(loaded.n, loaded.tolerate)}")


def load_roster(path: Path) -> Roster:
    """The roster in the YAML file `path`. Raises `CallerError` with line and column."""
    from policies.load import load_yaml

    return load_yaml(path, Roster)


def _described(roster: Roster) -> dict[str, object]:
    return {
        "network": roster.network,
        "scheme": describe_scheme(roster.n, roster.tolerate),
        "signers": [
            {
                "index": signer.index,
                "name": signer.name,
                "operator": signer.operator,
                "fingerprint": signer.fingerprint,
            }
            for signer in roster.signers
        ],
        "digest": roster.digest().hex(),
    }


def _show(roster: Roster) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    typer.echo(f"network  {roster.network}")
    typer.echo(f"scheme   {describe_scheme(roster.n, roster.tolerate)}")
    typer.echo(f"digest   {roster.digest().hex()}")
    table = Table(box=None, pad_edge=False)
    for heading in ("", "signer", "operator", "fingerprint"):
        table.add_column(heading, no_wrap=heading == "fingerprint")
    for signer in roster.signers:
        # Text, since an operator's name is anything: markup of it could make another fingerprint of what is shown.
        table.add_row(str(signer.index), signer.name, Text(printable(signer.operator)), signer.fingerprint)
    Console().print(table)
