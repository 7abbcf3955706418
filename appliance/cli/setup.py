"""`keymoot setup`: the first run of a host, by questions or by answers; run again, it goes on where it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.output import Json, report
from policies.errors import CallerError

if TYPE_CHECKING:
    from appliance.setup.answers import Answers
    from appliance.setup.hosts import Place
    from appliance.setup.pins import FilePin, Pin
    from appliance.setup.signer import Done

MAX_PIN_INPUT_BYTES = 258
NO_PIN = "not known yet: the HSM's PIN (--pin-stdin, --pin-file or --pin-credential)"


def setup(
    role: Annotated[str | None, typer.Option(help="signer (with its enclave) or coordinator.")] = None,
    directory: Annotated[
        Path | None, typer.Option(help="Where to write, in place of the package's directory in /etc/keymoot.")
    ] = None,
    instance: Annotated[
        str | None, typer.Option(help="For a host with several signers or coordinators: which one, as in unit@NAME.")
    ] = None,
    answers: Annotated[Path | None, typer.Option(help="A YAML file of answers; options count before it.")] = None,
    network: Annotated[str | None, typer.Option(help="The network's name.")] = None,
    name: Annotated[str | None, typer.Option(help="The signer's or coordinator's name: a-z, 0-9 and -.")] = None,
    operator: Annotated[str | None, typer.Option(help="The organisation that runs the signer.")] = None,
    coordinator: Annotated[
        list[str] | None, typer.Option(help="NAME=https://HOST:PORT of a coordinator; repeatable.")
    ] = None,
    coordinator_ca: Annotated[
        list[Path] | None, typer.Option(help="The CA of each coordinator, in the same order.")
    ] = None,
    lib: Annotated[str | None, typer.Option(help="The PKCS#11 module.")] = None,
    token_label: Annotated[str | None, typer.Option(help="The HSM token's label.")] = None,
    slot: Annotated[int | None, typer.Option(help="The token's slot, in place of its label.")] = None,
    init_args: Annotated[str | None, typer.Option(help="Arguments of C_Initialize, if it needs any.")] = None,
    accept_key_export: Annotated[
        bool, typer.Option("--accept-key-export", help="Use a module that exports keys marked non-extractable (NSS).")
    ] = False,
    pin_stdin: Annotated[bool, typer.Option("--pin-stdin", help="Read the HSM's PIN from standard input.")] = False,
    pin_file: Annotated[Path | None, typer.Option(help="Take the HSM's PIN from this file.")] = None,
    pin_credential: Annotated[
        str | None, typer.Option(help="Take the HSM's PIN from this credential, which systemd passed.")
    ] = None,
    gate_mode: Annotated[str | None, typer.Option(help="signed, status (weaker) or none.")] = None,
    gate: Annotated[str | None, typer.Option(help="URL of the operator's gate.")] = None,
    gate_ca: Annotated[Path | None, typer.Option(help="The CA of the gate's certificate.")] = None,
    gate_secrets: Annotated[Path | None, typer.Option(help="The secrets that the handler has already (JSON).")] = None,
    gate_secrets_out: Annotated[
        Path | None, typer.Option(help="Make the gate's secrets; the handler's copy goes into this new file.")
    ] = None,
    roster: Annotated[Path | None, typer.Option(help="roster.yaml to take in, once it is there.")] = None,
    policy: Annotated[Path | None, typer.Option(help="policy.yaml to take in.")] = None,
    host: Annotated[list[str] | None, typer.Option(help="Coordinator: DNS name it is reached by; repeatable.")] = None,
    address: Annotated[list[str] | None, typer.Option(help="Coordinator: IP address; repeatable.")] = None,
    signers_listen: Annotated[str | None, typer.Option(help="Coordinator: ADDRESS:PORT for signers.")] = None,
    api_listen: Annotated[str | None, typer.Option(help="Coordinator: ADDRESS:PORT for clients.")] = None,
    signers_ca: Annotated[
        list[Path] | None, typer.Option(help="Coordinator: ca.pem of each signer's operator; repeatable.")
    ] = None,
    replace_pin: Annotated[
        bool,
        typer.Option("--replace-pin", help="The HSM has a new PIN: try it once, and keep it in the old one's place."),
    ] = False,
    no_input: Annotated[bool, typer.Option("--no-input", help="Ask nothing: what is not known is an error.")] = False,
    as_json: Json = False,
) -> None:
    """Set up this host as a signer with its enclave, or as a coordinator. Run it again to go on: it overwrites nothing.

    What neither options nor --answers say is asked for on a terminal. The HSM's PIN is asked for too, or comes from
    standard input, a file or a credential; no option takes it.

    First run: configuration, certificates, keys in the HSM, and the fingerprint to exchange. Later, with --roster and
    --policy: those files are checked and taken in, and the gate's secrets sealed. Each run says what comes next.
    """
    from appliance.setup.answers import Answers, read_answers

    pins = (pin_stdin, pin_file, pin_credential)
    if sum(bool(one) for one in pins) > 1:
        raise CallerError("the PIN comes from one of --pin-stdin, --pin-file and --pin-credential")
    asking = not no_input and not pin_stdin and sys.stdin.isatty()
    if replace_pin:
        _replace_pin(directory, instance, pins, asking=asking, as_json=as_json)
        return
    said = read_answers(answers) if answers is not None else Answers()
    given = {
        "role": role,
        "network": network,
        "name": name,
        "operator": operator,
        "coordinators": _coordinators(coordinator or [], coordinator_ca or []),
        "hsm": _hsm(lib, token_label, slot, init_args, accept_key_export=accept_key_export),
        "gate": _gate(gate_mode, gate, gate_ca),
        "gate_secrets": gate_secrets,
        "gate_secrets_out": gate_secrets_out,
        "roster": roster,
        "policy": policy,
        "hosts": host,
        "addresses": address,
        "signers_listen": signers_listen,
        "api_listen": api_listen,
        "signers_ca": signers_ca,
    }
    said = _complete(said, given, directory, instance, asking=asking)
    if said.role == "coordinator":
        done, place = _coordinator(said, directory, instance)
    else:
        done, place = _signer(said, directory, instance, pins, asking=asking)
    _report(said, done, place, as_json=as_json)


def _complete(
    said: Answers, given: Mapping[str, object], directory: Path | None, instance: str | None, *, asking: bool
) -> Answers:
    """All answers, asked for where they are missing."""
    from appliance.setup.answers import merged

    said = merged(said, given)
    if asking:
        from appliance.cli.setup_questions import ask

        said = merged(said, ask(said, directory, instance))
    if said.role is None:
        raise CallerError("not known yet: --role signer or --role coordinator")
    return said


def _signer(
    said: Answers,
    directory: Path | None,
    instance: str | None,
    pins: tuple[bool, Path | None, str | None],
    *,
    asking: bool,
) -> tuple[Done, Place]:
    from appliance.cli.output import working
    from appliance.setup.hosts import signer_place
    from appliance.setup.pins import NamedPin
    from appliance.setup.signer import set_up

    place, keeping = signer_place(directory, instance)
    kept: FilePin = keeping()
    if not place.units and pins[1] is not None:
        kept = NamedPin(f"file:{pins[1].resolve()}")
    elif not place.units and pins[2] is not None:
        kept = NamedPin(f"credential:{pins[2]}")
    # A question in the middle of a spinner is not seen.
    pin = _pin(pins, asking=asking) if not kept.exists() else None

    def ask_pin() -> Pin:
        if pin is None:
            raise CallerError(NO_PIN)
        return pin

    with working("Making the signer's keys in its HSM…"):
        return set_up(place, said, kept, ask_pin), place


def _replace_pin(
    directory: Path | None,
    instance: str | None,
    pins: tuple[bool, Path | None, str | None],
    *,
    asking: bool,
    as_json: bool,
) -> None:
    from appliance.cli.output import working
    from appliance.setup.hosts import signer_place
    from appliance.setup.new_pin import replace_pin

    place, keeping = signer_place(directory, instance)
    pin = _pin(pins, asking=asking)
    if pin is None:
        raise CallerError(NO_PIN)
    with working("Trying it at the HSM…"):
        checked = replace_pin(place, keeping(), pin)
    steps = [
        f"Have the enclave read it: systemctl restart {place.units[0]}",
        f"See whether all is well: keymoot doctor {place.directory}",
    ]
    report(as_json, "The HSM takes the new PIN, which is kept.", {"token": checked.token}, steps)


def _pin(pins: tuple[bool, Path | None, str | None], *, asking: bool) -> Pin | None:
    from appliance.setup import pins as known

    stdin, file, credential = pins
    if stdin:
        return known.from_bytes(sys.stdin.buffer.read(MAX_PIN_INPUT_BYTES))
    if file is not None:
        from appliance.configure import read_bytes

        return known.from_bytes(read_bytes(file, "the HSM's PIN"))
    if credential is not None:
        return known.of_credential(credential, os.environ)
    return known.Pin(typer.prompt("The HSM's PIN", hide_input=True, err=True)) if asking else None


def _coordinator(said: Answers, directory: Path | None, instance: str | None) -> tuple[Done, Place]:
    from appliance.setup.coordinator import set_up
    from appliance.setup.hosts import coordinator_place

    place = coordinator_place(directory, instance)
    return set_up(place, said), place


def _coordinators(texts: list[str], cas: list[Path]) -> list[object]:
    from appliance.setup.answers import CoordinatorAnswer

    if len(texts) != len(cas):
        raise CallerError("give --coordinator-ca once for each --coordinator, in the same order")
    found: list[object] = []
    for text, ca in zip(texts, cas, strict=True):
        name, equals, url = text.partition("=")
        if not equals:
            raise CallerError(f"--coordinator {text}: write it as NAME=https://HOST:PORT")
        found.append(CoordinatorAnswer(name, url, ca))
    return found


def _hsm(
    lib: str | None, token_label: str | None, slot: int | None, init_args: str | None, *, accept_key_export: bool
) -> dict[str, object] | None:
    if lib is None:
        if token_label is not None or slot is not None:
            raise CallerError("--token-label and --slot go with --lib")
        return None
    hsm: dict[str, object] = {"lib": lib, "token_label": token_label, "slot": slot, "init_args": init_args}
    return hsm | {"accept_key_export": accept_key_export}


def _gate(mode: str | None, url: str | None, ca: Path | None) -> dict[str, object] | None:
    if not (mode or url or ca):
        return None
    return {"mode": mode or "signed", "url": url, "ca": ca}


def _report(said: Answers, done: Done, place: Place, *, as_json: bool) -> None:
    from appliance.setup.steps import next_steps

    fields = {
        "role": said.role,
        "directory": str(done.directory),
        "network": done.network,
        "name": done.name,
        "fingerprint": done.fingerprint,
        "sealing": done.sealing,
        "roster_digest": done.roster_digest,
        "policy_digest": done.policy_digest,
    }
    shown: dict[str, object] = {name: value for name, value in fields.items() if value}
    if as_json:
        shown |= {"did": done.did, "missing": done.missing}
    what = f"{said.role} {done.name} of network {done.network}"
    told = f"Set up {what}: {', '.join(done.did)}." if done.did else f"Nothing was left to do for {what}."
    report(as_json, told, shown, next_steps(said, done, place))
