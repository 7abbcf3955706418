"""`keymoot pki show|renew`: the certificates that `keymoot init` made."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import EXIT_FAILED, printable
from appliance.cli.output import Json, say_next, show_json

LEAF_DAYS = 825

app = typer.Typer(help="Certificates of a directory made by `keymoot init`: expiry, renewal.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(help="The directory of a signer, coordinator or gate.")]


@app.command("show")
def show(directory: Directory = Path(), as_json: Json = False) -> None:
    """Show when every certificate expires, and warn of those with fewer than 30 days.

    Exit codes: 0 all are good for 30 days, 1 one is not, 2 the caller's mistake.
    """
    from appliance import renewal

    shown = renewal.show(directory, _now())
    due = [one for one in shown if one.is_due]
    if as_json:
        show_json({"certificates": shown, "due": sorted({one.file for one in due})})
    else:
        for one in shown:
            told = f"{one.file:<24}  {one.days_left:>5} days  {one.expires[:10]}  {one.role:<9}"
            typer.echo(f"{told}  {printable(one.subject)}")
        if due:
            say_next(*dict.fromkeys(f"WARNING: {one.file} {one.when}: {one.remedy(directory)}" for one in due))
    if due:
        raise typer.Exit(EXIT_FAILED)


@app.command("renew")
def renew(
    directory: Directory = Path(),
    days: Annotated[int, typer.Option(help="How long the new certificates are valid; never longer than the CA.")] = (
        LEAF_DAYS
    ),
    as_json: Json = False,
) -> None:
    """Renew every certificate that this directory's CA issued. Key and names stay; the old one is kept as .old."""
    from appliance import renewal

    renewed = renewal.renew(directory, _now(), days=days)
    if as_json:
        show_json({"renewed": renewed})
        return
    for one in renewed:
        typer.echo(f"{one.file}: renewed, good for {one.days_left} days; the old one is {one.old}")
    say_next("The processes that use it take it up by themselves. Nothing is sent to anybody: the CA is the same.")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
