"""`keymoot policy check|explain|test|schema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import EXIT_FAILED, EXIT_REFUSED, printable
from appliance.cli.files import read_whole
from appliance.cli.output import Json, show_fields, show_json, working
from policies.errors import CallerError

if TYPE_CHECKING:
    from policies.explain import Explanation
    from policies.facts import Request
    from policies.load import Wrong
    from policies.trial import Trial

MAX_BODY_BYTES = 256 * 1024

app = typer.Typer(help="A signer's policy: check it, ask why it decides, test it.", no_args_is_help=True)

PolicyFile = Annotated[Path, typer.Argument(help="The policy file.")]


@app.command("check")
def check(file: PolicyFile = Path("policy.yaml"), as_json: Json = False) -> None:
    """Find every mistake of a policy, with line and column, and what is probably not meant."""
    from policies.advice import advise
    from policies.load import find_wrong, parse_yaml, read_text
    from policies.model import Policy

    text = read_text(file)
    wrong = find_wrong(text, Policy)
    if wrong:
        _show_wrong(file, wrong, as_json)
        raise typer.Exit(EXIT_FAILED)
    policy = parse_yaml(text, Policy, str(file))
    warnings, digest = list(advise(policy)), policy.digest().hex()
    if as_json:
        show_json({"file": str(file), "good": True, "digest": digest, "mistakes": [], "warnings": warnings})
        return
    for warning in warnings:
        typer.echo(f"{file}: warning: {warning}", err=True)
    clients, rules = len(policy.clients), len(policy.rules)
    typer.echo(f"{file} is a policy of {clients} client{'s' * (clients != 1)} and {rules} rule{'s' * (rules != 1)}.")
    show_fields({"digest": digest})


@app.command("explain")
def explain(
    file: PolicyFile,
    request: Annotated[Path, typer.Option("--request", "-r", help="The request's body, as it is sent to the API.")],
    client: Annotated[str, typer.Option(help="The client that asks: its id in the policy.")],
    label: Annotated[str, typer.Option(help="The label of the key that is to sign.")] = "",
    at: Annotated[str, typer.Option(help="When, in UTC, such as 2026-01-05T12:00:00Z; left out: now.")] = "",
    approved_by: Annotated[list[str] | None, typer.Option(help="A client that approved; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Say which rule decides on a request, and what each rule misses. Limits: as if nothing had been signed before.

    The body is read by the enclaves' own code. Exit code 4 where the policy refuses.
    """
    import time

    from policies.counters import Counters
    from policies.explain import decide_all
    from policies.facts import Situation
    from policies.keccak import keccak256
    from policies.load import load_policy
    from policies.reading import Asker, check_asker, read_body
    from policies.trial import read_time

    policy = load_policy(file)
    asker = Asker(client, label, frozenset(approved_by or ()))
    now_s = read_time(at) if at else int(time.time())
    check_asker(policy, asker)
    requests = read_body(read_whole(request, MAX_BODY_BYTES), asker, keccak256)
    found = decide_all(tuple(Situation(policy, one, Counters(), now_s) for one in requests))
    last = found[-1]
    if as_json:
        show_json(_as_json(requests[len(found) - 1], last))
    else:
        _show_explained(requests[len(found) - 1], last)
    if "refused_by" in _verdict(last):
        raise typer.Exit(EXIT_REFUSED)


@app.command("test")
def run(
    table: Annotated[Path, typer.Argument(help="The table of requests and what the policy must say to each.")],
    as_json: Json = False,
) -> None:
    """Put a table of requests to the policy beside it. Exit code 1 where one is decided otherwise than it says."""
    from policies.keccak import keccak256
    from policies.load import load_policy, load_yaml
    from policies.tables import Table
    from policies.trial import run_table

    loaded = load_yaml(table, Table)
    policy = load_policy(table.parent / loaded.policy)
    try:
        with working("Putting the table to the policy…"):
            trial = run_table(policy, loaded, keccak256)
    except CallerError as error:
        raise CallerError(f"{table}: {error}") from None
    if as_json:
        show_json({"table": str(table), "passed": not trial.failed, "cases": trial.outcomes, "untried": trial.untried})
    else:
        _show_trial(table, trial)
    if trial.failed:
        raise typer.Exit(EXIT_FAILED)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of policy files, for editors."""
    from policies.schema import policy_schema

    typer.echo(policy_schema(), nl=False)


def _show_wrong(file: Path, wrong: list[Wrong], as_json: bool) -> None:
    if as_json:
        mistakes = [{"line": one.line, "column": one.column, "what": one.what} for one in wrong]
        show_json({"file": str(file), "good": False, "digest": None, "mistakes": mistakes, "warnings": []})
        return
    for one in wrong:
        typer.echo(f"{file}:{one.line}:{one.column}: {printable(one.what)}", err=True)
    typer.echo(f"{file}: {len(wrong)} mistake{'s' * (len(wrong) != 1)}. An enclave does not start with it.", err=True)


def _verdict(found: Explanation) -> dict[str, str]:
    from policies.decide import Allow, Refuse

    decision = found.decision
    if isinstance(decision, Refuse):
        return {"refused_by": decision.rule, "reason": decision.reason}
    return {"permitted_by": decision.rule, "then": "done" if isinstance(decision, Allow) else "the gate is asked"}


def _as_json(request: Request, found: Explanation) -> dict[str, object]:
    from policies.gate_messages import show_decoded

    return {
        "decision": _verdict(found),
        "action": request.action,
        "kind": request.kind,
        "blind": request.blind,
        "label": request.label,
        "derivation_path": request.derivation_path,
        "decoded": show_decoded(request.decoded),
        "rules": found.rules,
    }


def _show_explained(request: Request, found: Explanation) -> None:
    from policies.gate_messages import show_decoded

    path = "/".join(("m", *map(str, request.derivation_path)))
    what = f"{request.kind} with {request.label} {path}" if request.kind else f"a key labelled {request.label}"
    typer.echo(f"{request.client_id} asks for {request.action}: {printable(what)}")
    for name, value in (show_decoded(request.decoded) or {}).items():
        if isinstance(value, dict):
            value = ", ".join(f"{inner} {one}" for inner, one in value.items() if one is not None)
        if value not in (None, [], ""):
            typer.echo(f"  {name}: {printable(str(value))[:200]}")
    verdict = _verdict(found)
    if "refused_by" in verdict:
        typer.echo(f"Refused by {verdict['refused_by']}: {printable(verdict['reason'])}")
    else:
        typer.echo(f"Permitted by the rule {verdict['permitted_by']}: {verdict['then']}.")
    for rule in found.rules:
        typer.echo(f"  {rule.rule}: {'misses' if rule.missed else 'permits it'}")
        for missed in rule.missed:
            typer.echo(f"    {missed.check}: {printable(missed.reason)}")


def _show_trial(table: Path, trial: Trial) -> None:
    for outcome in trial.outcomes:
        typer.echo(f"{'ok  ' if outcome.passed else 'FAIL'}  {printable(outcome.name)}: {outcome.got}")
        if not outcome.passed:
            typer.echo(
                f"      expected {outcome.expected}{f'; it was: {printable(outcome.reason)}' * bool(outcome.reason)}"
            )
    for rule in trial.untried:
        typer.echo(f"{table}: warning: no case is permitted by the rule {rule}", err=True)
    typer.echo(
        f"{len(trial.outcomes) - len(trial.failed)} of {len(trial.outcomes)} cases are decided as the table says."
    )
