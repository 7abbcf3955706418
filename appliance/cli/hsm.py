"""`keymoot hsm check`: what a PKCS#11 module can really do; `keymoot hsm rewrap`: a new sealing key for all records."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from appliance.cli import EXIT_FAILED, printable
from appliance.cli.output import Json, show_fields, show_json, working
from policies.errors import CallerError

if TYPE_CHECKING:
    from rich.table import Table

    from appliance.hsm_check import Checked, Operation
    from appliance.rewrapping import Rewrapping

app = typer.Typer(help="The HSM: what its PKCS#11 module can do; a new sealing key.", no_args_is_help=True)


@app.command("check")
def check(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The enclave's configuration; otherwise --lib and --pin.")
    ] = None,
    lib: Annotated[str, typer.Option(help="The PKCS#11 module.")] = "",
    token_label: Annotated[str, typer.Option(help="The token's label.")] = "",
    slot: Annotated[int | None, typer.Option(help="The token's slot, in place of its label.")] = None,
    pin: Annotated[str, typer.Option(help="The token's PIN: file:PATH, never the PIN itself.")] = "",
    init_args: Annotated[str | None, typer.Option(help="Arguments of C_Initialize, as in hsm.init_args.")] = None,
    as_json: Json = False,
) -> None:
    """Try every operation of a PKCS#11 module, with keys that live no longer than the check.

    With the configuration of an installed signer, and as root, it is tried as its enclave's user, with the PIN that
    systemd keeps for it.

    Exit codes: 0 usable, 1 not usable, 2 the caller's mistake (PIN, library, label), 3 no token there.
    """
    from appliance.hsm_check import check_module
    from appliance.setup.enclave_tool import enclave_tool

    if (config is None) == (not lib):
        raise CallerError("name the HSM by --config, or by --lib, --pin and --token-label or --slot")
    with working("Trying the module's operations…"):
        if config is not None:
            with enclave_tool(config) as tool:
                checked = check_module(tool.command("hsm-check"), environment=tool.environment, user=tool.user)
        else:
            section = _section(lib=lib, pin=_absolute(pin), token_label=token_label, slot=slot, init_args=init_args)
            checked = check_module([sys.executable, "-I", "-m", "enclave", "hsm-check", "--hsm", json.dumps(section)])
    if as_json:
        show_json({**msgspec.to_builtins(checked), "usable": checked.profile is not None})
    else:
        _show(checked)
    if checked.profile is None:
        raise typer.Exit(EXIT_FAILED)


@app.command("rewrap")
def rewrap(
    enclave: Annotated[Path, typer.Option("--config", "-c", help="The enclave's configuration.")],
    signer: Annotated[Path, typer.Option(help="The signer's configuration, which names its store.")],
    as_json: Json = False,
) -> None:
    """Bring every sealed record under the sealing key that the enclave's configuration names now.

    For rotating the HSM's key: set a new hsm.sealing_key_label, name the old one in hsm.retired_key_labels, stop signer
    and enclave, run this, start them. It makes the new key where it is missing, opens no share, and can be stopped and
    run again at any moment. Exit codes: 1 where a record does not open.
    """
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    from appliance.rewrapping import rewrap as rewrap_all
    from appliance.signer.config import load_config
    from appliance.store.signer import SignerStore

    state = load_config(signer).state
    if not state.exists():
        raise CallerError(f"{signer}: there is no store {state}")

    async def run() -> Rewrapping:
        store = SignerStore.open(state)
        try:
            with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as shown:
                task = shown.add_task("Rewrapping")
                return await rewrap_all(enclave, store, lambda n, total: shown.update(task, completed=n, total=total))
        finally:
            await store.close()

    done = asyncio.run(run())
    if as_json:
        show_json(done)
    else:
        show_fields({"records": str(done.records), "rewrapped": str(done.rewrapped), "already": str(done.already)})
        for reason in done.broken:
            typer.echo(f"broken: {printable(reason)}")
    if done.broken:
        raise typer.Exit(EXIT_FAILED)


def _section(**fields: str | int | None) -> dict[str, str | int]:
    """What was given. An empty `init_args` means something, an empty label or PIN does not."""
    return {name: value for name, value in fields.items() if value is not None and (value != "" or name == "init_args")}


def _absolute(pin: str) -> str:
    """A PIN reference whose path does not depend on the directory."""
    kind, colon, path = pin.partition(":")
    return f"{kind}:{Path(path).resolve()}" if kind == "file" and colon and path else pin


def _show(checked: Checked) -> None:
    from rich.console import Console

    show_fields(
        {
            "library": f"{checked.lib} ({checked.manufacturer}, {checked.description} {checked.version})",
            "token": f"{checked.token} in slot {checked.slot}",
            "opening": f"{checked.initialize_us / 1000:.1f} ms, and {checked.login_us / 1000:.1f} ms to log in",
        }
    )
    typer.echo("")
    Console(soft_wrap=True).print(_table(checked.operations))
    typer.echo("")
    for key in checked.keys:
        typer.echo(printable(f"{key.use} key {key.label}: {key.detail}"))
    typer.echo("")
    if checked.profile is None:
        typer.echo(f"Keymoot cannot use this token: {printable(checked.reason)}.")
    else:
        typer.echo(f"Keymoot seals with profile {checked.profile}: {printable(checked.reason)}.")


def _table(operations: tuple[Operation, ...]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("operation", no_wrap=True)
    table.add_column("works", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for one in operations:
        median = "" if one.median_us is None else f"{one.median_us:.0f} µs"
        # Text, since a module's words are not markup.
        table.add_row(one.name, "yes" if one.works else "no", median, Text(printable(one.detail)))
    return table
