"""`keymoot completion bash|zsh|fish`: the script that lets a shell complete keymoot's commands and options."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

PROGRAM = "keymoot"
# The script calls the program with this variable set.
VARIABLE = "_KEYMOOT_COMPLETE"


class Shell(StrEnum):
    """The shells there are scripts for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    context: typer.Context, shell: Annotated[Shell, typer.Argument(help="Which shell the script is for.")]
) -> None:
    """Print a completion script. For bash, in ~/.bashrc: eval "$(keymoot completion bash)"."""
    from typer.completion import shell_complete

    register()
    raise typer.Exit(shell_complete(context.find_root().command, {}, PROGRAM, VARIABLE, f"source_{shell.value}"))


def register() -> None:
    """Make typer's completions known, which its commands need before they can answer a shell."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()
