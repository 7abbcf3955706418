"""The page for operators: its commands are commands, its exit codes those of the program."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from appliance import cli
from appliance.cli.app import EPILOG, app

PAGE = (Path(__file__).parents[2] / "packaging" / "README.md").read_text()
HYBRID = (Path(__file__).parents[2] / "packaging" / "HYBRID.md").read_text()
GATES = (Path(__file__).parents[2] / "examples" / "README.md").read_text()
COMMANDS = re.findall(r"^ {4,7}keymoot (.+)$", PAGE + HYBRID + GATES, flags=re.MULTILINE)
CODES = {0, cli.EXIT_FAILED, cli.EXIT_CALLER, cli.EXIT_UNAVAILABLE, cli.EXIT_REFUSED, cli.EXIT_INTERRUPTED}


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_page_parses(line: str) -> None:
    command, words = typer.main.get_command(app), shlex.split(line.partition(" > ")[0])
    while subcommands := getattr(command, "commands", None):
        command = subcommands[words.pop(0)]
    assert command.make_context(line, words).params


def test_page_and_help_name_every_exit_code() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE)} == CODES
    assert {int(code) for code in re.findall(r"(?:^Exit codes: |\. )(\d+) ", EPILOG)} == CODES


def test_the_commands_with_json_are_those_that_help_names() -> None:
    named = re.search(r"nothing else there: (.+)\.$", EPILOG)
    assert named is not None
    told = {tuple(name.split()) for name in named[1].split(", ")}
    have = set(_with_json((), typer.main.get_command(app)))
    assert {next((name for name in told if path[: len(name)] == name), path) for path in have} == told


def _with_json(path: tuple[str, ...], command: object) -> list[tuple[str, ...]]:
    subcommands = getattr(command, "commands", {})
    if subcommands:
        return [found for name, sub in subcommands.items() for found in _with_json((*path, name), sub)]
    return [path] if any("--json" in parameter.opts for parameter in getattr(command, "params", ())) else []
