"""`keymoot pool`: the pools of presignatures, live."""

from __future__ import annotations

import datetime
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import EXIT_UNAVAILABLE, exit_code, printable
from appliance.cli.client import DEFAULT_PROFILE, ProfileOption, TokenOption, open_client
from appliance.cli.output import Json, show_json, working
from policies.errors import CallerError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Group
    from rich.text import Text

    from appliance.api.client import Client
    from appliance.api.models import Pool, PoolList

LEAST_INTERVAL_S, MOST_INTERVAL_S = 0.2, 86_400
BAR_WIDTH = 16


def pool(
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    burst: Annotated[
        int | None, typer.Option(help="Recommend marks for so many signatures at once; else for the busiest minute.")
    ] = None,
    interval_s: Annotated[float, typer.Option("--interval", help="Seconds between two looks.")] = 1.0,
    profile: ProfileOption = DEFAULT_PROFILE,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """Show each pool's level, marks, refill, consumption and time to empty, until Ctrl-C.

    On a terminal the view is live; elsewhere it is one line for each pool and look, with --json one object a look.
    """
    # What is no number is in no range.
    if not LEAST_INTERVAL_S <= interval_s <= MOST_INTERVAL_S:
        raise CallerError(f"--interval: at least {LEAST_INTERVAL_S} seconds, at most a day")
    if burst is not None and burst < 0:
        raise CallerError("--burst: 0 or more signatures")
    with open_client(profile, token) as client:
        if as_json:
            _each(client, burst, interval_s, once=once, show=_show_json)
        elif once or not sys.stdout.isatty():
            _each(client, burst, interval_s, once=once, show=_show_table if sys.stdout.isatty() else _show_lines)
        else:
            _live(client, burst, interval_s)


def _each(
    client: Client, burst: int | None, interval_s: float, *, once: bool, show: Callable[[PoolList], None]
) -> None:
    """Look and show, once or again and again. A coordinator that goes away meanwhile is waited for."""
    with working("asking the coordinator"):
        first = client.pools(burst)
    show(first)
    while not once:
        time.sleep(interval_s)
        pools = _again(client, burst)
        if isinstance(pools, str):
            typer.echo(f"keymoot: {pools}", err=True)
        else:
            show(pools)


def _again(client: Client, burst: int | None) -> PoolList | str:
    """The pools, or why they cannot be shown now. Raises `ApiError` where waiting does not help."""
    from appliance.api.client import ApiError

    try:
        return client.pools(burst)
    except Unavailable as error:
        return printable(error.what)
    except ApiError as error:
        if exit_code(error) != EXIT_UNAVAILABLE:
            raise
        return printable(str(error))


def _live(client: Client, burst: int | None, interval_s: float) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    with working("asking the coordinator"):
        shown: Group = _view(client.pools(burst))
    console = Console(highlight=False, emoji=False)
    with Live(shown, console=console, auto_refresh=False, screen=False) as live:
        while True:
            live.update(shown, refresh=True)
            time.sleep(interval_s)
            pools = _again(client, burst)
            shown = Group(Text(f"{_now()}  {pools}", style="bold red")) if isinstance(pools, str) else _view(pools)


def _show_json(pools: PoolList) -> None:
    show_json({"time": _now(), "waiting": pools.waiting, "burst": pools.burst, "pools": pools.items})
    sys.stdout.flush()


def _show_lines(pools: PoolList) -> None:
    from appliance.checkup.times import duration
    from appliance.cli.status_screen import refill_text

    for one in pools.items:
        empty = "-" if one.seconds_to_empty is None else duration(one.seconds_to_empty)
        typer.echo(
            f"{_now()}  pool {_name(one)}  {one.available} of {one.low}..{one.high}  used {one.spent_per_s:.1f}/s  "
            f"empty in {empty}  refill {refill_text(one).plain}"
        )
    if pools.items:
        typer.echo(_recommendation(pools))
    if not pools.items or pools.waiting:
        typer.echo(f"{_now()}  {pools.waiting} requests wait" if pools.items else f"{_now()}  no pool yet")
    sys.stdout.flush()


def _show_table(pools: PoolList) -> None:
    from rich.console import Console

    Console(highlight=False, emoji=False).print(_view(pools))


def _view(pools: PoolList) -> Group:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from appliance.checkup.times import duration
    from appliance.cli.status_screen import level_style, refill_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for heading in ("pool", "level", "", "low", "high", "used", "empty in", "refill"):
        right = heading in ("level", "low", "high", "used")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for one in pools.items:
        table.add_row(
            _name(one),
            Text(str(one.available), style=level_style(one)),
            _bar(one),
            str(one.low),
            str(one.high),
            f"{one.spent_per_s:.1f}/s" if one.spent_per_s else "-",
            "-" if one.seconds_to_empty is None else duration(one.seconds_to_empty),
            refill_text(one),
        )
    if not pools.items:
        return Group(Text(f"{_now()}  no pool yet: signers are away or the network is not set up"))
    lines = [Text(_recommendation(pools), style="dim")]
    if pools.waiting:
        lines.insert(0, Text(f"{pools.waiting} requests wait for a presignature", style="yellow"))
    return Group(table, *lines)


def _recommendation(pools: PoolList) -> str:
    """Marks are set for all pools together: those of the one that needs most."""
    low, high = max((one.recommended_low, one.recommended_high) for one in pools.items)
    what = "the busiest minute so far" if pools.burst is None else f"{pools.burst} signatures at once"
    return f"{_now()}  for {what}: pool.low {low}, pool.high {high}"


def _bar(pool: Pool) -> Text:
    """The level between 0 and `high`, with a stroke at `low`."""
    from rich.text import Text

    from appliance.cli.status_screen import level_style

    most = max(pool.high, pool.available, 1)
    filled, mark = round(BAR_WIDTH * pool.available / most), min(round(BAR_WIDTH * pool.low / most), BAR_WIDTH - 1)
    text = Text()
    for place in range(BAR_WIDTH):
        sign = "█" if place < filled else "┊" if place == mark else "·"
        text.append(sign, style=level_style(pool) if place < filled else "dim")
    return text


def _name(pool: Pool) -> str:
    return "-".join(map(str, pool.committee))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
