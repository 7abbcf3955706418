"""`keymoot status`: one screen that says what is wrong and what to do about it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import EXIT_FAILED, EXIT_UNAVAILABLE
from appliance.cli.client import DEFAULT_PROFILE, ProfileOption, TokenOption
from appliance.cli.output import Json, show_json, working
from policies.errors import CallerError

if TYPE_CHECKING:
    from appliance.checkup.findings import Finding
    from appliance.checkup.host import SignerHost
    from appliance.checkup.network import NetworkFacts
    from policies.roster import Roster

FILES = ("signer.yaml", "enclave.yaml", "coordinator.yaml", "gate.yaml")


def status(
    context: typer.Context,
    directories: Annotated[
        list[Path] | None,
        typer.Argument(help="Directories of this host made by `keymoot init`: of a signer, coordinator or gate."),
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong with the network (--profile) and with what runs on this host (DIRECTORIES), and what to do.

    Without DIRECTORIES the network is asked, or the present directory looked at where it holds no profile.

    Exit codes: 0 all is well, 1 something needs attention, 2 the caller's mistake, 3 no coordinator can be reached.
    """
    from appliance.cli import status_screen as screen

    places = list(directories or ())
    named = str(getattr(context.get_parameter_source("profile"), "name", "DEFAULT")) != "DEFAULT"
    if not places and not named and not profile.exists() and any(Path(name).exists() for name in FILES):
        places = [Path()]
    now = datetime.datetime.now(datetime.UTC)
    findings: list[Finding] = []
    facts, roster, unreachable, hosts = None, None, None, []
    with working("asking the coordinator" if named or not places else "looking") as told:
        if named or not places:
            facts, roster, unreachable, findings = _ask(profile, token, now)
        for place in places:
            told(f"looking at {place}")
            host, found = _look_at(place, now)
            hosts += [host] if host is not None else []
            findings += found
    if as_json:
        show_json(_document(facts, hosts, findings, unreachable))
    else:
        screen.show(facts, roster, hosts, findings, unreachable, now)
    _exit(findings, unreachable)


def _ask(
    profile: Path, token: Path | None, now: datetime.datetime
) -> tuple[NetworkFacts | None, Roster, str | None, list[Finding]]:
    """What the coordinators show and what is wrong with it; why none can be reached, where none can."""
    from appliance.checkup.seen_by_api import look_at_all
    from appliance.profile import load_profile

    loaded = load_profile(profile, token)
    seen = look_at_all(loaded, now)
    return seen.facts, loaded.roster, seen.unreachable, seen.findings


def _look_at(place: Path, now: datetime.datetime) -> tuple[SignerHost | None, list[Finding]]:
    """One directory of this host. Raises `CallerError` for one that `keymoot init` did not make."""
    from appliance.checkup.host import check_signer
    from appliance.checkup.others import check_coordinator, check_gate

    if (place / "signer.yaml").exists() or (place / "enclave.yaml").exists():
        return check_signer(place, now)
    if (place / "coordinator.yaml").exists():
        return None, list(check_coordinator(place, now))
    if (place / "gate.yaml").exists():
        return None, list(check_gate(place, now))
    if (place / "client.yaml").exists():
        raise CallerError(f"{place} is a client's: keymoot status --profile {place / 'client.yaml'}")
    raise CallerError(f"{place} holds none of {', '.join(FILES)}: name a directory made by `keymoot init`")


def _document(
    facts: NetworkFacts | None, hosts: list[SignerHost], findings: list[Finding], unreachable: str | None
) -> dict[str, Any]:
    from appliance.checkup.findings import by_severity, need_attention

    verdict = "unreachable" if unreachable else "attention" if need_attention(findings) else "ok"
    document: dict[str, Any] = {"status": verdict, "findings": by_severity(findings)}
    if facts is not None:
        document |= {"coordinator": facts.coordinator, "signers": facts.signers, "pools": facts.pools.items}
    if hosts:
        document["hosts"] = hosts
    return document


def _exit(findings: list[Finding], unreachable: str | None) -> None:
    from appliance.checkup.findings import need_attention

    if unreachable is not None:
        raise typer.Exit(EXIT_UNAVAILABLE)
    if need_attention(findings):
        raise typer.Exit(EXIT_FAILED)
