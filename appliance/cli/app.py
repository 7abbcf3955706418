"""All commands and groups of `keymoot`, in the order in which `--help` shows them."""

from __future__ import annotations

from typing import Annotated

import typer

from appliance.cli import (
    approve,
    bench,
    completion,
    doctor,
    evidence,
    gate,
    hsm,
    init,
    keys,
    pki,
    policy,
    pool,
    processes,
    roster,
    scheme,
    setup,
    sign,
    status,
    stop,
)
from appliance.cli.output import Json

EPILOG = (
    "Exit codes: 0 done. 1 failed, or what was checked is not good. 2 the caller's mistake. 3 something is away: "
    "try again. 4 refused by policy, gate or enclave. 130 interrupted. The reason is on standard error."
    "\n\n"
    "What takes longer shows its progress on standard error, where that is a terminal. "
    "With --json, one line of JSON on standard output (pool: one for each look) and nothing else there: scheme, "
    "setup, status, doctor, freeze, unfreeze, operator-key, pool, init, roster, enclave accept-rollback, coordinator "
    "readmit, coordinator token, gate secret, gate trial-secrets, gate check, policy, hsm, evidence "
    "verify, pki, keys, sign, approve, demo, bench."
)

app = typer.Typer(
    name="keymoot",
    epilog=EPILOG,
    help="An open threshold-signing appliance: HSM-sealed key shares, a gate per signer, no inbound ports.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        import importlib.metadata

        typer.echo(f"keymoot {importlib.metadata.version('keymoot')}")
        raise typer.Exit


app.command("scheme")(scheme.show)
app.command("setup")(setup.setup)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.command("freeze")(stop.freeze)
app.command("unfreeze")(stop.unfreeze)
app.command("operator-key")(stop.operator_key)
app.command("pool")(pool.pool)
app.add_typer(init.app, name="init")
app.add_typer(roster.app, name="roster")
app.add_typer(processes.enclave, name="enclave")
app.add_typer(processes.signer, name="signer")
app.add_typer(processes.coordinator, name="coordinator")
app.add_typer(gate.app, name="gate")
app.add_typer(policy.app, name="policy")
app.add_typer(hsm.app, name="hsm")
app.add_typer(evidence.app, name="evidence")
app.add_typer(pki.app, name="pki")
app.add_typer(keys.app, name="keys")
app.add_typer(sign.app, name="sign")
app.command("approve")(approve.approve)


@app.command()
def demo(as_json: Json = False) -> None:
    """Three signers with HSMs, a coordinator and gates on this machine: make a key, sign, verify, refuse."""
    from appliance.cli.demo import run

    run(as_json=as_json)


app.add_typer(bench.app, name="bench")
app.command("completion")(completion.completion)
