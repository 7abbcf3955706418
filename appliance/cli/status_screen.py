"""The screen of `keymoot status`."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from appliance.api.models import Pool, Signer
from appliance.checkup.findings import Finding, Severity, by_severity, need_attention
from appliance.checkup.host import SignerHost
from appliance.checkup.network import NetworkFacts, can_sign
from appliance.checkup.times import WARN_BELOW_DAYS, ago, days_until, duration
from appliance.cli import printable
from policies.roster import Roster, describe_scheme
from policies.signed_requests import CLOCK_SKEW_S

# Hex digits that tell digests apart; --json has all.
DIGEST_SHOWN = 16
POLICY_SHOWN = 8
GOOD, BAD, DOUBTFUL, DIM = "green", "bold red", "yellow", "dim"
STYLES = {Severity.PROBLEM: BAD, Severity.WARNING: DOUBTFUL, Severity.NOTE: DIM}
TITLES = {Severity.PROBLEM: "Problems", Severity.WARNING: "Warnings", Severity.NOTE: "To know"}
ENCLAVE_STATES = {
    "ready": ("ready", GOOD),
    "waiting": ("waits for setup", DOUBTFUL),
    "hsm-away": ("HSM away", BAD),
    "silent": ("enclave silent", BAD),
    "away": ("no enclave", BAD),
}
GATES = {"answers": ("answers", GOOD), "unreachable": ("unreachable", BAD), "unknown": ("not asked yet", DIM)}


def show(
    facts: NetworkFacts | None,
    roster: Roster | None,
    hosts: list[SignerHost],
    findings: list[Finding],
    unreachable: str | None,
    now: datetime.datetime,
) -> None:
    """Print everything; what is wrong comes last, where the eye is."""
    console = Console(highlight=False, emoji=False)
    if roster is not None:
        _line(console, f"Network {roster.network}", describe_scheme(roster.n, roster.tolerate))
    if facts is not None:
        coordinator = facts.coordinator
        up = f"version {coordinator.version}, up {ago(coordinator.started_at, now)}"
        _line(console, f"Coordinator {coordinator.name}", up)
        console.print(_signers(facts.signers, now))
        console.print(_pools(facts.pools.items) if facts.pools.items else Text("no pool yet\n", style=DIM))
        if facts.pools.waiting:
            console.print(Text(f"{facts.pools.waiting} requests wait for a presignature\n", style=DOUBTFUL))
        if facts.coordinator.awaiting_approvals:
            console.print(Text(f"{facts.coordinator.awaiting_approvals} requests await approvals\n", style=DOUBTFUL))
    for host in hosts:
        _host(console, host)
    _verdict(console, findings, unreachable, facts, roster)


def _line(console: Console, title: str, rest: str) -> None:
    console.print(Text.assemble((printable(title), "bold"), "  ", printable(rest)), soft_wrap=True)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style=DIM)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _signers(signers: tuple[Signer, ...], now: datetime.datetime) -> Table:
    table = _table("signer", "operator", "state", "for", "gate", "policy", "certificate", "version")
    for signer in signers:
        table.add_row(
            Text(printable(signer.name)),
            Text(printable(signer.operator)),
            _state(signer),
            ago(signer.since, now) or "-",
            _gate(signer),
            _policy(signer),
            _certificate(days_until(signer.certificate_expires, now)),
            Text("-" if signer.announced is None else printable(signer.announced.enclave_version)),
        )
    return table


def _state(signer: Signer) -> Text:
    if not signer.online:
        return Text("AWAY", style=BAD)
    if signer.convicted is not None:
        return Text("CONVICTED", style=BAD)
    if signer.frozen:
        every = any(one.pattern == "**" for one in signer.frozen)
        return Text("FROZEN" if every else "frozen in part", style=BAD)
    if signer.condition is None:
        return Text("online", style=GOOD)
    return _told(ENCLAVE_STATES, signer.condition.enclave)


def _gate(signer: Signer) -> Text:
    if signer.announced is None:
        return Text("-")
    if signer.announced.gate_mode == "none":
        return Text("none", style=DOUBTFUL)
    if signer.condition is None:
        return Text(printable(signer.announced.gate_mode))
    return _told(GATES, signer.condition.gate)


def _policy(signer: Signer) -> Text:
    """The start of its digest; whether others have another one."""
    if signer.policy is None:
        return Text("-")
    told = signer.policy.digest[2 : 2 + POLICY_SHOWN]
    if signer.policy.trouble:
        return Text(f"{told} OUTDATED", style=BAD)
    return Text(f"{told} differs" if signer.policy.differs else told, style=DOUBTFUL if signer.policy.differs else "")


def _told(table: dict[str, tuple[str, str]], value: str) -> Text:
    text, style = table.get(value, (printable(value), DOUBTFUL))
    return Text(text, style=style)


def _certificate(days: int | None) -> Text:
    if days is None:
        return Text("-")
    if days < 0:
        return Text("expired", style=BAD)
    return Text(f"{days} days", style=DOUBTFUL if days < WARN_BELOW_DAYS else "")


def _pools(pools: tuple[Pool, ...]) -> Table:
    table = _table("pool", "presignatures", "low", "high", "used", "empty in", "refill")
    for column in table.columns[1:4]:
        column.justify = "right"
    for pool in pools:
        table.add_row(*pool_row(pool))
    return table


def pool_row(pool: Pool) -> tuple[Text | str, ...]:
    """Committee, level, marks, consumption, time to empty, refill."""
    empty = "-" if pool.seconds_to_empty is None else duration(pool.seconds_to_empty)
    used = f"{pool.spent_per_s:.1f}/s" if pool.spent_per_s else "-"
    return (
        "-".join(map(str, pool.committee)),
        Text(str(pool.available), style=level_style(pool)),
        str(pool.low),
        str(pool.high),
        used,
        empty,
        refill_text(pool),
    )


def level_style(pool: Pool) -> str:
    """How a pool's level is coloured."""
    if pool.available == 0:
        return BAD
    return DOUBTFUL if pool.available < pool.low else GOOD


def refill_text(pool: Pool) -> Text:
    """What is being done for a pool."""
    rate = "" if pool.filled_per_s is None else f" ({pool.filled_per_s:.0f}/s)"
    if not pool.ready:
        return Text("members away", style=DOUBTFUL)
    if pool.filling:
        return Text(f"under way{rate}")
    if pool.failure:
        return Text("failed", style=BAD)
    if not pool.kept_filled:
        return Text("no: used up, not kept", style=DIM)
    return Text("due" if pool.available < pool.low else "not due", style=DIM)


def _host(console: Console, host: SignerHost) -> None:
    enclave = host.enclave
    title = f"Signer {host.name}"
    if enclave is not None:
        _line(console, title, f"signer {enclave.index} of network {enclave.network}, in {host.directory}")
    else:
        _line(console, title, f"in {host.directory}")
    table = Table.grid(padding=(0, 2))
    for name, value in _host_fields(host):
        table.add_row(Text(name, style=DIM), value)
    console.print(Padding(table, (0, 0, 1, 2)))


def _host_fields(host: SignerHost) -> Iterator[tuple[str, Text]]:
    status, enclave = host.status, host.enclave
    if enclave is not None:
        yield "roster", Text(enclave.roster_digest[:DIGEST_SHOWN])
        yield "policy", Text(enclave.policy_digest[:DIGEST_SHOWN])
    if status is None:
        yield "process", Text("does not answer", style=BAD)
        return
    yield "process", Text(f"version {status.version}", style=GOOD)
    yield "enclave", _told(ENCLAVE_STATES, status.enclave)
    if enclave is not None:
        away = status.enclave == "hsm-away"
        yield "HSM", Text("away" if away else enclave.token, style=BAD if away else "")
        yield "gate", Text("none" if enclave.gate_mode == "none" else _gate_word(status.gate_reason))
    if status.policy_trouble:
        yield "policy", Text(f"the new one is not in force: {printable(status.policy_trouble)}", style=BAD)
    for freeze in status.frozen:
        yield "FROZEN", Text(printable(f"{freeze.pattern} by {freeze.operator} {freeze.reason}"), style=BAD)
    for one in status.coordinators:
        text = Text.assemble((f"{printable(one.name)} ", ""), ("up", GOOD) if one.up else ("down", BAD), f" {one.url}")
        yield "coordinator", text
    for clock in status.clocks_off()[:1]:
        off = f"{clock.seconds} s {clock.side}" + (" of" if clock.side == "ahead" else "")
        yield "clock", Text(f"{off} {printable(clock.peer)}", style=BAD if clock.seconds > CLOCK_SKEW_S else "")
    if "presignatures" in status.values:
        yield "presignatures", Text(str(status.values["presignatures"]))


def _gate_word(reason: str | None) -> str:
    return "not asked yet" if reason is None else "unreachable" if reason else "answers"


def _verdict(
    console: Console,
    findings: list[Finding],
    unreachable: str | None,
    facts: NetworkFacts | None,
    roster: Roster | None,
) -> None:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    told: Severity | None = None
    for finding in by_severity(findings):
        if finding.severity is not told:
            told = finding.severity
            grid.add_row(Text("■", style=STYLES[told]), Text(TITLES[told], style=STYLES[told]))
        grid.add_row("", Text.assemble((printable(finding.subject), "bold"), f" {printable(finding.what)}."))
        grid.add_row("", Text(f"→ {printable(finding.remedy)}"))
    if findings:
        console.print(grid)
        console.print()
    if unreachable is not None:
        console.print(Text("The coordinator cannot be reached: nothing is known of the signers.", style=BAD))
    elif not need_attention(findings):
        console.print(Text("All is well.", style=GOOD))
    elif facts is not None and roster is not None and can_sign(facts, roster):
        console.print(Text("Signatures can be made now.", style=GOOD))
    elif facts is not None:
        console.print(Text("Nothing can be signed now.", style=BAD))
