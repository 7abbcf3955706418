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
TAKEN_UP = "A running enclave takes them up within seconds: `gate secrets reloaded` in its log."

app = typer.Typer(help="The validation gate: its secrets, a reference handler, a check of yours.", no_args_is_help=True)


@app.command("secret")
def secret(
    config: Annotated[Path, typer.Option("--config", "-c", help="The enclave's configuration.")] = Path("enclave.yaml"),
    generate: Annotated[
        Path | None,
        typer.Option(help="Make new secrets, and write the handler's copy to this new file (mode 0600)."),
    ] = None,
    ed25519: Annotated[
        bool, typer.Option("--ed25519", help="With --generate: Ed25519 keys, each side its own, in place of HMAC.")
    ] = False,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="The present secrets stay in use beside the new ones, until --finish.")
    ] = False,
    finish: Annotated[bool, typer.Option("--finish", help="End a rotation: the older secrets count no more.")] = False,
    as_json: Json = False,
) -> None:
    """Seal the gate's secrets for the enclave. They are read from standard input, or made with --generate.

    To rotate them without a gap: --rotate, give the handler its copy, --finish. Enclave and reference handler take
    each step up by themselves, within seconds.
    """
    from appliance import enrolment, pki

    if finish:
        if rotate or generate is not None or ed25519:
            raise CallerError("--finish stands alone: it ends a rotation that --rotate began")
        with working("Sealing the secrets…"):
            _seal(config, "finish-gate-rotation", b"")
        report(as_json, "The older secrets count no more.", {}, [TAKEN_UP])
        return
    if ed25519 and generate is None:
        raise CallerError("--ed25519 says which keys --generate makes")
    action = "rotate-gate-secret" if rotate else "seal-gate-secret"
    if generate is None:
        secrets = _read_secrets()
        with working("Sealing the secrets…"):
            _seal(config, action, secrets)
    else:
        secrets, copy = enrolment.new_secret_files(ed25519=ed25519)
        pki.write_new(generate, copy, pki.SECRET_MODE)
        try:
            with working("Sealing the secrets…"):
                _seal(config, action, secrets)
        except BaseException:
            generate.unlink()
            raise
    steps = [TAKEN_UP]
    if generate is not None:
        steps.append(f"Then move the handler's copy, {generate}, to the gate, and keep no other.")
    if rotate:
        steps.append("Once the handler uses them: keymoot gate secret --finish")
    handler = {} if generate is None else {"handler_copy": str(generate)}
    report(as_json, "The gate's secrets are sealed.", handler, steps)


def _seal(config: Path, action: str, secrets: bytes) -> None:
    from appliance.enrolment import run_enclave_tool
    from appliance.setup.enclave_tool import enclave_tool

    with enclave_tool(config) as tool, tool.sealing() as more:
        run_enclave_tool(tool.command(action, *more), secrets, tool.environment, user=tool.user)


def _read_secrets() -> bytes:
    if sys.stdin.isatty():
        typer.echo('Paste {"request_hmac": "whsec_…", "answer_hmac": "whsec_…"} and end with Ctrl-D:', err=True)
    secrets = sys.stdin.buffer.read(MAX_SECRETS_BYTES + 1)
    if len(secrets) > MAX_SECRETS_BYTES:
        raise CallerError(f"the gate's secrets exceed {MAX_SECRETS_BYTES} bytes")
    return secrets


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


app.command("trial-secrets")(gate_check.trial_secrets)
app.command("check")(gate_check.check)
app.command("question")(gate_check.question)
app.command("openapi")(gate_check.openapi)
