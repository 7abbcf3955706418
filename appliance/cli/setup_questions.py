"""The questions of `keymoot setup` on a terminal: what is not known yet, with what this machine has as a choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import typer

from appliance.cli import printable
from appliance.setup import answers, coordinator, modules, signer
from appliance.setup.answers import Answers, CoordinatorAnswer
from appliance.setup.hosts import coordinator_place, signer_place
from appliance.signer.config import HttpsUrl
from policies.errors import CallerError, Unavailable
from policies.roster import Name

T = TypeVar("T")


def ask(said: Answers, directory: Path | None, instance: str | None) -> dict[str, object]:
    """What is said, by the names of `Answers`. Raises `CallerError` where the host cannot be set up."""
    given: dict[str, object] = {}
    role = said.role or _choice("What is this host?", ["signer", "coordinator"])
    given["role"] = role
    if role == "coordinator":
        place = coordinator_place(directory, instance).directory
        if not coordinator.is_configured(place):
            return given | _of_coordinator(said)
        return given | _later(said, place, [("roster", signer.ROSTER)])
    place = signer_place(directory, instance)[0].directory
    if not signer.is_configured(place):
        return given | _of_signer(said)
    given |= _later(said, place, [("roster", signer.ROSTER), ("policy", signer.POLICY)])
    return given | _secrets(said, place)


def _of_signer(said: Answers) -> dict[str, object]:
    given: dict[str, object] = {
        "network": said.network or _ask("Name of the network", _name),
        "name": said.name or _ask("Name of this signer", _name),
        "operator": said.operator or _ask("Organisation that runs it", str),
        "coordinators": said.coordinators or _coordinators(),
        "hsm": said.hsm or _hsm(),
        "gate": said.gate or _gate(),
    }
    return given


def _of_coordinator(said: Answers) -> dict[str, object]:
    given: dict[str, object] = {
        "network": said.network or _ask("Name of the network", _name),
        "name": said.name or _ask("Name of this coordinator", _name, default="coordinator"),
    }
    if not (said.hosts or said.addresses):
        given["hosts"] = [_ask("DNS name that signers and clients reach it by", str)]
    return given


def _later(said: Answers, place: Path, files: list[tuple[str, str]]) -> dict[str, object]:
    """Files that may have come since."""
    given: dict[str, object] = {}
    for answer, name in files:
        if getattr(said, answer) is None and not (place / name).exists():
            path = typer.prompt(f"Path of {name} (empty: not there yet)", default="", show_default=False, err=True)
            given[answer] = path or None
    return given


def _secrets(said: Answers, place: Path) -> dict[str, object]:
    from policies.load import load_yaml

    gate = load_yaml(place / signer.ENCLAVE, signer.EnclaveFile).gate
    if gate.mode != "signed" or (place / gate.secrets).exists() or said.gate_secrets or said.gate_secrets_out:
        return {}
    path = typer.prompt(
        "New file for the gate handler's copy of its secrets (empty: not now)", default="", show_default=False, err=True
    )
    if not path:
        return {}
    return {"gate_secrets_out": path}


def _coordinators() -> list[CoordinatorAnswer]:
    found: list[CoordinatorAnswer] = []
    while True:
        name = _ask("Name of a coordinator", _name, default="coordinator" if not found else None)
        url = _ask("Its address for signers, https://HOST:PORT", _url)
        found.append(CoordinatorAnswer(name, url, _ask("File with its CA (ca.pem)", _file)))
        if len(found) >= answers.MAX_COORDINATORS or not typer.confirm("Another coordinator?", default=False, err=True):
            return found


def _hsm() -> dict[str, object]:
    found = modules.installed()
    other = "another file"
    picked = _choice("Which PKCS#11 module?", [*(f"{path} ({vendor})" for vendor, path in found), other])
    lib = _ask("Path of the module", _file_text) if picked == other else picked.partition(" (")[0]
    try:
        tokens = modules.tokens(lib)
    except (CallerError, Unavailable) as error:
        typer.echo(f"Its tokens cannot be listed: {printable(str(error))}", err=True)
        tokens = []
    if not tokens:
        return {"lib": lib, "token_label": _ask("Label of the token", str)}
    labels = [token.label for token in tokens]
    shown = [f"{token.label} (slot {token.slot}, {token.model} {token.serial})" for token in tokens]
    token = tokens[shown.index(_choice("Which token?", shown))]
    if token.label and labels.count(token.label) == 1:
        return {"lib": lib, "token_label": token.label}
    return {"lib": lib, "slot": token.slot}


def _gate() -> dict[str, object]:
    kinds = {
        "signed: your handler's signed answer counts": "signed",
        "status: its HTTP status counts (weaker)": "status",
        "none: the policy alone decides": "none",
    }
    mode = kinds[_choice("How is your consent asked for?", list(kinds))]
    if mode == "none":
        return {"mode": mode}
    url = _ask("Address of your gate, https://HOST:PORT/PATH", _url)
    return {"mode": mode, "url": url, "ca": _ask("File with the CA of its certificate", _file)}


def _choice(question: str, choices: list[str]) -> str:
    """One of `choices`, by its number."""
    typer.echo(question, err=True)
    for number, choice in enumerate(choices, 1):
        typer.echo(f"  {number}. {printable(choice)}", err=True)

    def number_of(text: str) -> str:
        if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= len(choices)):
            raise CallerError(f"a number from 1 to {len(choices)}")
        return choices[int(text) - 1]

    return _ask("Number", number_of, default="1")


def _ask(question: str, parse: Callable[[str], T], default: str | None = None) -> T:
    """Ask until the answer fits."""
    while True:
        text = str(typer.prompt(question, default=default, err=True)).strip()
        try:
            return parse(text)
        except (CallerError, msgspec.ValidationError) as error:
            typer.echo(f"  {printable(str(error))}", err=True)


def _name(text: str) -> str:
    try:
        return msgspec.convert(text, Name)
    except msgspec.ValidationError:
        raise CallerError("a name is a-z, 0-9 and -, and begins with a letter or digit") from None


def _url(text: str) -> str:
    try:
        return msgspec.convert(text, HttpsUrl)
    except msgspec.ValidationError:
        raise CallerError("write it as https://HOST:PORT") from None


def _file(text: str) -> Path:
    try:
        path = Path(text).expanduser()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        # Too long for a name, the home of nobody, or of a user whose name nobody can have.
        raise CallerError(f"there is no file {text}: {getattr(error, 'strerror', None) or error}") from None
    if not there:
        raise CallerError(f"there is no file {path}")
    return path.resolve()


def _file_text(text: str) -> str:
    return str(_file(text))
