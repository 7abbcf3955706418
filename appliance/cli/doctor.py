"""`keymoot doctor`: every check of this host, and of the network where it may be read, each with result and remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import EXIT_FAILED, printable
from appliance.cli.client import DEFAULT_PROFILE, ProfileOption, TokenOption
from appliance.cli.output import Json, show_json, working
from policies.errors import CallerError

if TYPE_CHECKING:
    from rich.console import Console

    from appliance.checkup.checks import Check, Checked

STYLES = {"ok": "green", "problem": "bold red", "warning": "yellow", "note": "dim"}


def doctor(
    context: typer.Context,
    directories: Annotated[
        list[Path] | None,
        typer.Argument(help="Directories of this host: of a signer, enclave, coordinator or gate."),
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    token: TokenOption = None,
    gate_secrets: Annotated[
        Path | None,
        typer.Option(help="The gate handler's secrets: asks the signer's gate dry runs, as `keymoot gate check` does."),
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, max=600, help="Seconds for one check.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Check everything that has to be right on this host, each check with its result and what to do.

    Without DIRECTORIES: the present one where it holds a configuration, else those in /etc/keymoot. With --profile,
    or in a coordinator's directory with its operator.token, the network is looked at too: who is there, the versions
    of all signers, rosters, pools. No secret is shown, nothing is changed.

    Exit codes: 0 all is well (notes aside), 1 something needs attention, 2 the caller's mistake.
    """
    from appliance.checkup.checks import need_attention, run

    named = str(getattr(context.get_parameter_source("profile"), "name", "DEFAULT")) != "DEFAULT"
    places = list(directories or ()) or _here()
    if not places and not named:
        raise CallerError(
            "no configuration here or in /etc/keymoot: name a directory, or --profile for the network alone"
        )
    checked = []
    with working("Checking…") as tell:
        for check in _told(_all(places, profile if named else None, token, gate_secrets), tell):
            checked += list(run([check], timeout_s))
    if as_json:
        verdict = "attention" if need_attention(checked) else "ok"
        show_json({"status": verdict, "checks": checked})
    else:
        _show(checked)
    if need_attention(checked):
        raise typer.Exit(EXIT_FAILED)


def _here() -> list[Path]:
    """The directories to look at where none is named."""
    from appliance.checkup.doctor import CONFIGURATIONS
    from appliance.layout import CONFIGURATION

    def holds(place: Path) -> bool:
        return any((place / name).exists() for name in CONFIGURATIONS)

    if holds(Path()):
        return [Path()]
    # What the package lays out: one of each, or several under a name each.
    return sorted(place for pattern in ("*", "*/*") for place in CONFIGURATION.glob(pattern) if holds(place))


def _all(places: list[Path], profile: Path | None, token: Path | None, gate_secrets: Path | None) -> Iterator[Check]:
    from appliance.checkup.doctor import Around, directory_checks, host_checks
    from appliance.checkup.seen_by_api import coordinators_own_check, network_check

    around = Around(gate_secrets=gate_secrets)
    if places:
        yield from host_checks(around, enclave=any((place / "enclave.yaml").exists() for place in places))
    for place in places:
        yield from directory_checks(place, around)
        yield from coordinators_own_check(place, around.now)
    if profile is not None:
        yield network_check(profile, token, around.now)


def _told(checks: Iterator[Check], tell: object) -> Iterator[Check]:
    for check in checks:
        if callable(tell):
            tell(f"Checking {check.name} of {check.subject}…")
        yield check


def _show(checked: list[Checked]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for heading in ("", "check", "of", ""):
        table.add_column(heading, overflow="fold")
    for one in checked:
        table.add_row(
            Text(one.result.value, style=STYLES[one.result.value]),
            one.check,
            Text(printable(one.subject)),
            Text(printable(one.what) + (f"\n→ {printable(one.remedy)}" if one.remedy else "")),
        )
    console.print(table)
    _verdict(console, checked)


def _verdict(console: Console, checked: list[Checked]) -> None:
    from appliance.checkup.checks import need_attention

    counts = Counter(one.result.value for one in checked)
    told = ", ".join(f"{counts[name]} {name}" for name in STYLES if counts[name])
    if need_attention(checked):
        console.print(f"Something needs attention: {told}.", style="bold red")
    else:
        console.print(f"All is well: {told}.", style="green")
