"""`keymoot gate secret|serve`, and what `gate_check.py` adds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import gate_check
from appliance.cli.output import Json, report, working
from policies.errors import CallerError

MAX_SECRETS_BYTES = 16 * 1024

app = typer.Typer(help="The validation gate: its secrets, a reference handler, a check of yours.", no_args_is_help=True)


@app.command("secret")
def secret(
    config: Annotated[Path, typer.Option("--config", "-c", help="The enclave's configuration.")] = Path("enclave.yaml"),
    generate: Annotated[
        Path | None,
        typer.Option(help="Make new secrets, and write the handler's copy to this new file (mode 0600)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Seal the gate's secrets for the enclave. They are read from standard input, or made with --generate."""
    from appliance import enrolment, pki

    command = enrolment.enclave_command("seal-gate-secret", config)
    if generate is None:
        if sys.stdin.isatty():
            typer.echo('Paste {"request_hmac": "whsec_…", "answer_hmac": "whsec_…"} and end with Ctrl-D:', err=True)
        secrets = sys.stdin.buffer.read(MAX_SECRETS_BYTES + 1)
        if len(secrets) > MAX_SECRETS_BYTES:
            raise CallerError(f"the gate's secrets exceed {MAX_SECRETS_BYTES} bytes")
        with working("Sealing the secrets…"):
            enrolment.run_enclave_tool(command, secrets)
    else:
        secrets = enrolment.new_secrets()
        pki.write_new(generate, secrets, pki.SECRET_MODE)
        try:
            with working("Sealing the secrets…"):
                enrolment.run_enclave_tool(command, secrets)
        except BaseException:
            generate.unlink()
            raise
    steps = ["Restart the enclave to use them."]
    if generate is not None:
        steps.insert(0, f"Move the handler's copy, {generate}, to the gate, and keep no other.")
    handler = {} if generate is None else {"handler_copy": str(generate)}
    report(as_json, "The gate's secrets are sealed.", handler, steps)


@app.command("serve")
def serve(config: Annotated[Path, typer.Option("--config", "-c")] = Path("gate.yaml")) -> None:
    """Run the reference handler: verifies the enclave's question, applies a few rules, signs the answer."""
    try:
        from appliance.gate.handler import run
    except ModuleNotFoundError as error:
        raise CallerError(f"the reference handler needs {error.name}: pip install 'keymoot[demo]'") from None
    from appliance.enrolment import require_file
    from appliance.gate.config import load_config

    run(load_config(require_file(config)))


app.command("check")(gate_check.check)
app.command("question")(gate_check.question)
app.command("openapi")(gate_check.openapi)
