"""Writes keymoot(1) from the command line's own help, so that it says what the installed command says."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any

import typer.main

from appliance.cli.app import EPILOG, app

SYNOPSIS = "keymoot COMMAND [OPTIONS] [ARGUMENTS]"


def roff(text: str) -> str:
    """`text` with nothing that troff would act on."""
    plain = re.sub(r"\s+", " ", text).strip()
    escaped = plain.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a docstring."""
    for part in text.replace("\b", "").split("\n\n"):
        if part.strip():
            yield from (".PP", roff(part))


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    # Typer brings its own click: groups are known by what they have.
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    else:
        for one in inner.values():
            yield from commands(one, f"{name} {one.name}")


def options(command: Any) -> Iterator[str]:
    """Arguments and options as a tagged list."""
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        named = [one for one in (*parameter.opts, *parameter.secondary_opts) if one.startswith("-")]
        shown = ", ".join(named) or str(parameter.name).upper()
        takes = f" {str(parameter.name).upper()}" if named and not getattr(parameter, "is_flag", False) else ""
        yield from (".TP", f"\\fB{roff(shown)}\\fR{roff(takes) and ' ' + roff(takes)}")
        yield roff(getattr(parameter, "help", None) or "") or "\\&"


def page() -> Iterator[str]:
    """All lines."""
    version = importlib.metadata.version("keymoot")
    yield f'.TH KEYMOOT 1 "" "keymoot {version}" "Keymoot"'
    yield from (".SH NAME", "keymoot \\- an open threshold\\-signing appliance")
    yield from (".SH SYNOPSIS", f"\\fB{roff(SYNOPSIS)}\\fR")
    yield from (".SH DESCRIPTION", roff(app.info.help or ""))
    yield ".SH COMMANDS"
    for name, command in commands(typer.main.get_command(app), "keymoot"):
        yield from (f".SS {roff(name)}", *paragraphs(command.help or ""), *options(command))
    yield from (".SH EXIT STATUS AND OUTPUT", *paragraphs(EPILOG))
    yield from (".SH SEE ALSO", "\\fBkeymoot\\-appliance\\fR(7)")


if __name__ == "__main__":
    print("\n".join(page()))
