"""How commands speak: plain lines for people, one JSON object with `--json`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated

import msgspec
import typer

from appliance.cli import printable

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def show_json(value: object) -> None:
    """`value` (structs, dicts, lists) as one line of JSON on standard output."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def show_fields(fields: dict[str, str], *, err: bool = False) -> None:
    """One `name  value` line for each field, values aligned; on standard error with `err`."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        typer.echo(f"{name:<{width}}  {printable(value)}", err=err)


def report(as_json: bool, done: str, fields: Mapping[str, object], steps: Sequence[str]) -> None:
    """What a command has done, its results, and what comes next; with `--json` as one object."""
    if as_json:
        show_json({**fields, "next": steps})
        return
    typer.echo(done)
    texts = {name.replace("_", " "): str(value) for name, value in fields.items() if isinstance(value, str | int)}
    if texts:
        show_fields(texts)
    say_next(*steps)


@contextmanager
def working(title: str) -> Iterator[Callable[[str], None]]:
    """A spinner with `title` on standard error while the block runs, where that is a terminal; nothing elsewhere.

    The block may call what it is given with another title.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    # Text, since it may name a file, which is no markup.
    with Console(stderr=True, highlight=False).status(Text(title)) as status:
        yield lambda text: status.update(Text(printable(text)))


def say_next(*steps: str) -> None:
    """What to do next, numbered where there is more than one step."""
    typer.echo("")
    typer.echo("Next:" if steps else "Done.")
    for number, step in enumerate(steps, start=1):
        typer.echo(f"  {number}. {step}" if len(steps) > 1 else f"  {step}")
