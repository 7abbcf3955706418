"""`keymoot gate trial-secrets|check|question|openapi`: for who writes a handler."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import printable
from appliance.cli.files import read_whole
from appliance.cli.output import Json, report, show_json, working
from policies.errors import CallerError

if TYPE_CHECKING:
    from appliance.gate.check.findings import Finding
    from appliance.gate.check.keys import Keys
    from appliance.gate.check.player import Settings
    from appliance.gate.check.questions import Parts
    from appliance.signer.config import GateSettings

MAX_PARTS_BYTES = 512 * 1024


class Mode(StrEnum):
    """As `gate.mode` of `enclave.yaml`."""

    SIGNED = "signed"
    STATUS = "status"


class Kind(StrEnum):
    """As `signerInfo.kind`. The last three are described only: no enclave asks them yet."""

    SIGNING = "Signing"
    SIGNING_BATCH = "SigningBatch"
    KEY_CREATION = "KeyCreation"
    REFRESH = "Refresh"
    RESHARE = "Reshare"
    BACKUP_KEY_CHANGE = "BackupKeyChange"


def check(
    url: Annotated[str, typer.Argument(help="The handler, https://…, as in the signer's signer.yaml.")],
    ca: Annotated[Path, typer.Option(help="The authority of the handler's certificate.")],
    secrets: Annotated[
        Path | None,
        typer.Option(help="The secrets as `keymoot gate secret` reads them, a file of mode 0600; - is standard input."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The signer's certificate, where the handler wants one.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The key of --certificate.")] = None,
    mode: Annotated[
        Mode, typer.Option(help="How the enclave judges: signed answers, or the HTTP status alone.")
    ] = Mode.SIGNED,
    allowed: Annotated[
        Path | None,
        typer.Option(help="A request that it allows: a body as clients sign it, or a logged question of any kind."),
    ] = None,
    refused: Annotated[Path | None, typer.Option(help="The same of one that it refuses.")] = None,
    real: Annotated[
        bool, typer.Option("--real", help="Also ask one question that is no dry run: the handler may act on it.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds for one exchange.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Play a signer against a handler, and report what it did with good and bad questions. All are dry runs.

    One question of each kind is asked, of those too that no enclave asks yet. Exit codes: 0 nothing failed, 1 something
    did, 2 the caller's mistake.
    """
    import asyncio

    from appliance.gate.check.findings import Outcome
    from appliance.gate.check.player import Settings

    settings = Settings(
        gate=_gate(url, ca, certificate, key),
        keys=_keys(mode, secrets),
        timeout_s=timeout,
        allowed=_parts(allowed),
        refused=_parts(refused),
        real=real,
    )
    findings = asyncio.run(_collect(settings, as_json=as_json))
    counts = {outcome.value: sum(found.outcome is outcome for found in findings) for outcome in Outcome}
    if as_json:
        show_json({"url": url, "mode": mode.value, **counts, "findings": findings})
    else:
        typer.echo("\n" + ", ".join(f"{count} {name}" for name, count in counts.items() if count) + ".")
    if counts["failed"]:
        raise typer.Exit(1)


def trial_secrets(
    directory: Annotated[Path, typer.Argument(help="Where the two files are written; it is made if it is not there.")],
    ed25519: Annotated[
        bool, typer.Option("--ed25519", help="Ed25519 keys, each side its own, in place of HMAC.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make secrets for trying a handler without a signer: the handler's copy, and the signer's for `gate check`."""
    from appliance import enrolment, pki

    signer, handler = enrolment.new_secret_files(ed25519=ed25519)
    places = {"handler_copy": directory / "gate-secrets.json", "signer_copy": directory / "trial-secrets.json"}
    if taken := [str(place) for place in places.values() if place.exists()]:
        raise CallerError(f"{taken[0]} is there already: choose another directory, or move it away")
    pki.write_new(places["handler_copy"], handler, pki.SECRET_MODE)
    pki.write_new(places["signer_copy"], signer, pki.SECRET_MODE)
    steps = [
        f"Start the handler with {places['handler_copy']}.",
        f"Check it: keymoot gate check URL --ca CA --secrets {places['signer_copy']}",
        "For a real signer make others: keymoot gate secret --generate FILE",
    ]
    report(as_json, "Secrets for a trial are made.", {name: str(place) for name, place in places.items()}, steps)


def question(
    request: Annotated[
        Path | None, typer.Option(help="The body of a request as clients sign it, or a logged question; else a sample.")
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="Which sample; else a transfer. No enclave asks the last three yet.")
    ] = None,
) -> None:
    """Print a question as an enclave would ask it, a dry run, not signed yet: examples/gate-curl can send it."""
    import os
    import time

    from appliance.gate.check.questions import DEADLINE_S
    from appliance.gate.check.questions import question as make

    if request is not None and kind is not None:
        raise CallerError("give --request or --kind, not both: a request has its own kind")
    deadline_s = int(time.time()) + DEADLINE_S
    asked = make(os.urandom(16).hex(), deadline_s, dry_run=True, parts=_parts(request), kind=kind and kind.value)
    sys.stdout.write(asked.body.decode())


def openapi() -> None:
    """Print the OpenAPI 3.1 document of the gate: what is asked, and what to answer."""
    import importlib.metadata

    from appliance.gate.openapi import describe

    show_json(describe(importlib.metadata.version("keymoot")))


async def _collect(settings: Settings, *, as_json: bool) -> list[Finding]:
    import os
    import time

    from appliance.gate.check.run import check_handler

    findings = []
    with working("Asking…") as title:
        async for finding in check_handler(settings, time.time, os.urandom):
            title(f"Asking… {finding.check}")
            findings.append(finding)
            if not as_json:
                _show(finding)
    return findings


def _show(finding: Finding) -> None:
    typer.echo(f"{finding.outcome.value:<8} {finding.check:<20} {printable(finding.what)}")
    for text in (finding.means, finding.remedy):
        if text:
            typer.echo(f"{'':<29} {text}")


def _gate(url: str, ca: Path, certificate: Path | None, key: Path | None) -> GateSettings:
    import msgspec

    from appliance.signer.config import GateSettings, HttpsUrl

    if (certificate is None) != (key is None):
        raise CallerError("give both --certificate and --key, or neither")
    try:
        msgspec.convert(url, HttpsUrl)
    except msgspec.ValidationError:
        raise CallerError(
            "the handler's URL must be https://host[:port][/path], as signers ask over TLS alone"
        ) from None
    return GateSettings(url, ca, certificate, key)


def _keys(mode: Mode, secrets: Path | None) -> Keys | None:
    from appliance.gate.check.keys import parse_keys
    from appliance.gate.config import MAX_SECRETS_BYTES, read_secrets

    if mode is Mode.STATUS:
        if secrets is not None:
            raise CallerError("mode status has no secrets: leave --secrets out")
        return None
    if secrets is None:
        raise CallerError("give the gate's secrets with --secrets FILE (- for standard input)")
    if str(secrets) == "-":
        return parse_keys(sys.stdin.buffer.read(MAX_SECRETS_BYTES))
    return parse_keys(read_secrets(secrets))


def _parts(path: Path | None) -> Parts | None:
    from appliance.gate.check.questions import parse_parts

    return None if path is None else parse_parts(read_whole(path, MAX_PARTS_BYTES), str(path))
