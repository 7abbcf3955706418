"""Looks at the directories of this host that `keymoot init` made: configuration, processes, certificates."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance import layout, renewal
from appliance.checkup.findings import Finding, note, problem, warning, weak_gate
from appliance.checkup.probe import read_socket, tls_failure
from appliance.checkup.times import duration
from appliance.enclave_status import enclave_status
from appliance.enrolment import enclave_command, run_enclave_tool
from appliance.signer.config import SignerConfig, load_config
from appliance.signer.status import SignerStatus
from appliance.tls import client_context
from policies.errors import CallerError, Unavailable
from policies.signed_requests import CLOCK_SKEW_S

T = TypeVar("T")
_THAN = {"ahead": "ahead of", "behind": "behind"}


class DescribedEnclave(msgspec.Struct, frozen=True):
    """What `enclave describe` says of a configuration."""

    network: str
    signer: str
    index: int
    fingerprint: str
    roster_digest: str
    policy_digest: str
    gate_mode: str
    gate_secrets: bool
    socket: str
    token: str
    accept_key_export: bool
    unfiltered: str


class SignerHost(msgspec.Struct, frozen=True):
    """A signer's directory: its configuration and what its process says, each None where it cannot be had."""

    directory: str
    name: str
    enclave: DescribedEnclave | None
    status: SignerStatus | None


def check_signer(directory: Path, now: datetime.datetime) -> tuple[SignerHost, list[Finding]]:
    """The signer whose enclave.yaml and signer.yaml are in `directory`."""
    name = directory.resolve().name
    found: list[Finding] = []
    enclave = or_finding(lambda: described(directory / "enclave.yaml"), found, name, "enclave.yaml")
    config = or_finding(lambda: load_config(directory / "signer.yaml"), found, name, "signer.yaml")
    name = enclave.signer if enclave is not None else name
    status = None
    if config is not None:
        if enclave is not None:
            found += [*fit(name, config, enclave), *of_enclave(name, enclave)]
        status, told = running(name, directory, config)
        found += told
        if status is not None and enclave is not None:
            found += agreement(name, enclave, status)
        found += coordinators(name, status) if status is not None else reachable(name, config)
        found += gate(name, directory, config, status)
    found += certificates(name, directory, now)
    return SignerHost(str(directory), name, enclave, status), found


def certificates(subject: str, directory: Path, now: datetime.datetime) -> Iterator[Finding]:
    """The certificates of a directory that need somebody."""
    try:
        shown = renewal.show(directory, now)
    except CallerError as error:
        yield problem(subject, str(error), "Put the files that `keymoot init` made back in place.")
        return
    for one in shown:
        if one.is_due:
            severity = problem if one.days_left < 0 else warning
            yield severity(subject, f"{one.file} {one.when}", one.remedy(directory))


def described(path: Path) -> DescribedEnclave:
    """What an enclave.yaml and its files say. Raises `CallerError`, also where they do not fit, and `Unavailable`."""
    output = run_enclave_tool(enclave_command("describe", path))
    try:
        return msgspec.json.decode(output, type=DescribedEnclave)
    except msgspec.DecodeError as error:
        raise Unavailable(f"`enclave describe` answered something unexpected: {error}", "report it") from None


def or_finding(load: Callable[[], T], found: list[Finding], subject: str, file: str) -> T | None:
    """What `load` gives, or None and a finding that `file` has to be corrected."""
    try:
        return load()
    except (CallerError, Unavailable) as error:
        found.append(problem(subject, str(error), f"Correct {file}; the process does not start with it."))
        return None


def fit(name: str, config: SignerConfig, enclave: DescribedEnclave) -> Iterator[Finding]:
    """Whether the two files are of one signer."""
    if config.network != enclave.network:
        yield problem(
            name,
            f"signer.yaml is of network {config.network}, enclave.yaml of {enclave.network}",
            "Make `network` the same in both.",
        )
    if str(config.enclave_socket.resolve()) != enclave.socket:
        yield problem(
            name,
            f"signer.yaml looks for the enclave at {config.enclave_socket}, it listens on {enclave.socket}",
            "Make `enclave_socket` in signer.yaml and `socket` in enclave.yaml the same path.",
        )
    if enclave.gate_mode != "none" and config.gate is None:
        yield problem(
            name,
            "its enclave asks a gate, but signer.yaml names none: everything is refused",
            "Set gate.url and gate.ca in signer.yaml.",
        )


def of_enclave(name: str, enclave: DescribedEnclave) -> Iterator[Finding]:
    """What the enclave's own configuration says."""
    if enclave.gate_mode != "none" and not enclave.gate_secrets:
        yield problem(
            name, "the gate's secrets are missing", "keymoot gate secret --config enclave.yaml --generate FILE"
        )
    if enclave.gate_mode == "none":
        yield note(name, "has no gate: its policy alone decides", "That is as enclave.yaml says (gate.mode).")
    elif enclave.gate_mode == "status":
        yield weak_gate(name)
    if enclave.accept_key_export:
        yield note(
            name, "accepts a module that exports keys: the PIN alone guards them", "That is as enclave.yaml says."
        )


def agreement(name: str, enclave: DescribedEnclave, status: SignerStatus) -> Iterator[Finding]:
    """Whether the running enclave has the files as they are now."""
    if not status.roster_digest:
        return
    for what, file, runs in (
        ("roster", enclave.roster_digest, status.roster_digest),
        ("policy", enclave.policy_digest, status.policy_digest),
    ):
        if file != runs:
            yield warning(
                name,
                f"its enclave runs with another {what} ({runs[:16]}) than {what}.yaml has now ({file[:16]})",
                "If the change was meant, reload the enclave (policy) or restart it (roster); else find who did it.",
            )


def running(name: str, directory: Path, config: SignerConfig) -> tuple[SignerStatus | None, list[Finding]]:
    """What the signer's process says; where there is none, what the enclave says to us."""
    if config.status_socket is None:
        told = warning(
            name,
            "signer.yaml names no status_socket, so its process cannot be asked",
            "Add `status_socket: run/signer.sock` to signer.yaml and restart the signer.",
        )
        return None, [told]
    try:
        status = msgspec.json.decode(read_socket(config.status_socket), type=SignerStatus)
    except (OSError, msgspec.DecodeError) as error:
        why = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        found = problem(
            name,
            f"the signer does not run: nobody answers on {config.status_socket}{why}",
            _start(directory, 1, f"keymoot signer run -c {directory / 'signer.yaml'}"),
        )
        return None, [found, *enclave_alone(name, directory, config)]
    return status, list(_enclave(name, directory, status))


def enclave_alone(name: str, directory: Path, config: SignerConfig) -> Iterator[Finding]:
    """What an enclave without a signer says of itself."""
    try:
        told = enclave_status(config.enclave_socket)
    except Unavailable:
        yield problem(name, f"the enclave does not answer on {config.enclave_socket}", _start_enclave(directory))
    else:
        if told.state == "hsm-away":
            yield problem(name, f"the HSM is away: {told.reason}", _check_hsm(directory))


def _enclave(name: str, directory: Path, status: SignerStatus) -> Iterator[Finding]:
    for freeze in status.frozen:
        what = "everything" if freeze.pattern == "**" else f"the labels {freeze.pattern}"
        by = f" by {freeze.operator}" if freeze.operator else ""
        why = f" ({freeze.reason})" if freeze.reason else ""
        yield problem(name, f"is frozen for {what}{by}{why}", "Its operators end it with `keymoot unfreeze`.")
    if status.policy_trouble:
        yield problem(
            name,
            f"did not take its new policy: {status.policy_trouble}",
            "Correct the file and reload the enclave (systemctl reload, or kill -HUP).",
        )
    yield from clocks(name, status)
    match status.enclave:
        case "away":
            yield problem(name, f"no enclave is connected: {status.reason}", _start_enclave(directory))
        case "silent":
            yield problem(
                name, "the enclave does not answer", "Read its log and this host's load; restart it if that stays."
            )
        case "hsm-away":
            yield problem(name, f"the HSM is away: {status.reason}", _check_hsm(directory))
        case "waiting":
            yield warning(name, status.reason, "The coordinator sets the network up once all signers are online.")


def clocks(name: str, status: SignerStatus) -> Iterator[Finding]:
    """The peer whose clock is furthest from this machine's, as its hello said it."""
    for one in status.clocks_off()[:1]:
        if one.seconds > CLOCK_SKEW_S:
            yield warning(
                name,
                f"this host's clock is {duration(one.seconds)} {_THAN[one.side]} that of {one.peer}",
                "Find out which one is wrong (timedatectl status) and set it right: within 30 s of each other, or "
                "what is limited, or bound to hours, is refused.",
            )


def _start_enclave(directory: Path) -> str:
    return _start(directory, 0, f"keymoot enclave run -c {directory / 'enclave.yaml'}")


def _start(directory: Path, unit: int, command: str) -> str:
    """How to see why one of a signer's two processes does not run."""
    installed = layout.signer_at(directory)
    if installed is not None:
        return f"systemctl status {installed.units[unit]}; its last line says why."
    return f"{command}; if it ends, its last line says why."


def _check_hsm(directory: Path) -> str:
    return f"keymoot hsm check -c {directory / 'enclave.yaml'}; once the token is back, the enclave returns by itself."


def coordinators(name: str, status: SignerStatus) -> Iterator[Finding]:
    """The links that are down, as the signer says."""
    for one in status.coordinators:
        if not one.up and status.enclave != "away":
            yield problem(
                name,
                f"is not connected at {one.url}: {one.reason or f'coordinator {one.name}: no attempt has ended yet'}",
                _coordinator_remedy(one.reason),
            )


def _coordinator_remedy(reason: str) -> str:
    if "certificate" in reason.lower():
        return "Compare the pinned CA in signer.yaml with the coordinator's ca.pem, and the CA it has of this operator."
    return "See whether the coordinator runs, and whether this host may reach it (firewall, name)."


def reachable(name: str, config: SignerConfig) -> Iterator[Finding]:
    """Which coordinators do not answer this host, where no signer runs."""
    for one in config.coordinators:
        try:
            why = tls_failure(one.url, client_context(one.ca, one.certificate, one.key))
        except CallerError as error:
            yield problem(name, str(error), "Put the files that `keymoot init` made back in place.")
            continue
        if why:
            yield problem(name, f"coordinator {one.name} at {one.url} does not answer: {why}", _coordinator_remedy(why))


def gate(name: str, directory: Path, config: SignerConfig, status: SignerStatus | None) -> Iterator[Finding]:
    """Whether the operator's handler answers."""
    if config.gate is None:
        return
    gate = config.gate
    if status is not None and status.gate_reason:
        why = status.gate_reason
    else:
        try:
            context = client_context(gate.ca, gate.certificate, gate.key, ssl.TLSVersion.TLSv1_2)
        except CallerError as error:
            yield problem(name, str(error), f"Put the gate's CA back in place: {directory / 'gate-ca.pem'}.")
            return
        why = tls_failure(gate.url, context)
    if why:
        yield problem(
            name,
            f"the gate at {gate.url} does not answer: {why}",
            "Start its handler (keymoot gate serve, or your own). Until it answers, this signer refuses to sign.",
        )
