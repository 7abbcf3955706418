"""How commands speak: plain lines for people, one JSON object with `--json`."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def show_json(value: object) -> None:
    """`value` (structs, dicts, lists) as one line of JSON on standard output."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def show_fields(fields: dict[str, str]) -> None:
    """One `name  value` line for each field, values aligned."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        typer.echo(f"{name:<{width}}  {value}")


def say_next(*steps: str) -> None:
    """What to do next, numbered where there is more than one step."""
    typer.echo("")
    typer.echo("Next:" if steps else "Done.")
    for number, step in enumerate(steps, start=1):
        typer.echo(f"  {number}. {step}" if len(steps) > 1 else f"  {step}")
