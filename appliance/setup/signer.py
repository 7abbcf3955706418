"""A signer's first run, step by step; each step that is done already is passed over, so that it can be run again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from appliance import configure, enrolment, pki
from appliance.gate.config import read_secrets
from appliance.setup import answers, staging
from appliance.setup.enclave_tool import EnclaveTool
from appliance.setup.hosts import Place
from appliance.setup.pins import FilePin, Pin
from appliance.signer.config import load_config
from policies.errors import CallerError
from policies.load import load_yaml
from policies.model import Policy
from policies.roster import Roster

ENCLAVE, SIGNER, ROSTER, POLICY = "enclave.yaml", "signer.yaml", "roster.yaml", "policy.yaml"


class _Gate(msgspec.Struct, frozen=True):
    mode: str
    secrets: str = "gate-secrets.sealed"  # a file's name


class _Hsm(msgspec.Struct, frozen=True):
    lib: str


class EnclaveFile(msgspec.Struct, frozen=True):
    """What a setup looks at of an enclave.yaml that is there."""

    network: str
    signer: str
    gate: _Gate
    hsm: _Hsm


@dataclass
class Done:
    """What a setup found and did. `missing`: what a signer needs before it can start, in the order of getting it."""

    directory: Path
    network: str = ""
    name: str = ""
    fingerprint: str = ""
    sealing: str = ""
    lib: str = ""
    roster_digest: str = ""
    policy_digest: str = ""
    did: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def is_configured(directory: Path) -> bool:
    """Whether both files are in place, and nothing of a setup that was broken off is left."""
    return all((directory / name).exists() for name in (ENCLAVE, SIGNER)) and not (directory / staging.STAGE).exists()


def set_up(place: Place, said: answers.Answers, kept: FilePin, ask_pin: Callable[[], Pin]) -> Done:
    """Configuration, keys in the HSM, roster and policy, the gate's secrets: whatever is missing and can be done now.

    Raises `CallerError` for what does not fit with what is there, `Unavailable` where the HSM is away. What one call
    of it made is removed again where the keys could not be made; what is complete stays.
    """
    directory, done = place.directory, Done(place.directory)
    if is_configured(directory):
        _same_signer(directory, said)
    else:
        _configure(place, said, kept, ask_pin, done)
    found = load_yaml(directory / ENCLAVE, EnclaveFile)
    done.network, done.name, done.lib = found.network, found.signer, found.hsm.lib
    identity = _provisioned(place, said, found, kept, ask_pin, done)
    done.fingerprint = identity.fingerprint
    _take_in(place, said.roster, ROSTER, done, lambda path: _check_roster(path, identity))
    _take_in(place, said.policy, POLICY, done, lambda path: load_yaml(path, Policy))
    if _has_both(directory):
        done.roster_digest = load_yaml(directory / ROSTER, Roster).digest().hex()
        done.policy_digest = load_yaml(directory / POLICY, Policy).digest().hex()
    _seal_gate_secrets(place, said, found, kept, done)
    done.missing += [name for name in (ROSTER, POLICY) if not (directory / name).exists()]
    if found.gate.mode == "signed" and not (directory / found.gate.secrets).exists():
        done.missing.append(found.gate.secrets)
    return done


def _same_signer(directory: Path, said: answers.Answers) -> None:
    """Raises `CallerError` where the answers are another signer's than the one that is set up there."""
    found = load_yaml(directory / ENCLAVE, EnclaveFile)
    for what, told, there in (("network", said.network, found.network), ("name", said.name, found.signer)):
        if told is not None and told != there:
            raise CallerError(
                f"{directory} is set up already, as signer {found.signer} of network {found.network}: {what} {told} "
                "does not fit, and nothing is overwritten"
            )


def _configure(place: Place, said: answers.Answers, kept: FilePin, ask_pin: Callable[[], Pin], done: Done) -> None:
    if missing := answers.missing_of_signer(said):
        raise CallerError(f"not known yet: {', '.join(missing)}")
    setup = answers.signer_setup(said, kept.reference, place.places)
    was_there = place.directory.exists()
    place.prepare()
    before = set(place.directory.iterdir()) if was_there else None
    with ExitStack() as undo:
        undo.callback(_remove, place.directory, before)
        if not kept.exists():
            kept.keep(ask_pin())
            undo.callback(kept.forget)
        staging.write_all(place.directory, lambda stage: configure.write_signer(stage, setup))
        load_config(place.directory / SIGNER)
        done.did.append("configuration written")
        # Before anybody is told of a signer: what cannot be opened now is a mistake in the answers.
        _provision(place, said, EnclaveFile(setup.network, setup.name, _Gate("none"), _Hsm(setup.hsm.lib)), kept, done)
        undo.pop_all()


def _remove(directory: Path, before: set[Path] | None) -> None:
    """What has come into `directory` since, or all of it where it was not there."""
    if before is None:
        shutil.rmtree(directory)
        return
    for path in set(directory.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _provisioned(
    place: Place,
    said: answers.Answers,
    found: EnclaveFile,
    kept: FilePin,
    ask_pin: Callable[[], Pin],
    done: Done,
) -> enrolment.Identity:
    path = place.directory / enrolment.IDENTITY_FILE
    if not path.exists():
        if not kept.exists():
            kept.keep(ask_pin())
        _provision(place, said, found, kept, done)
    return enrolment.read_identity(path)


def _provision(place: Place, said: answers.Answers, found: EnclaveFile, kept: FilePin, done: Done) -> None:
    if said.operator is None:
        raise CallerError("not known yet: --operator")
    with kept.environment() as environment:
        _, done.sealing = enrolment.provision(
            place.directory, found.network, found.signer, said.operator, environment, place.owner
        )
    done.did.append("keys made in the HSM")


def _take_in(place: Place, source: Path | None, name: str, done: Done, check: Callable[[Path], object]) -> None:
    """Copy a file in, once it is known to be right. One that is there must be the same."""
    there = place.directory / name
    if source is None:
        return
    check(source)
    data = configure.read_bytes(source, name)
    if there.exists():
        if there.read_bytes() != data:
            raise CallerError(
                f"{there} is another file than {source}: nothing is overwritten; compare, then replace it"
            )
        return
    pki.write_new(there, data)
    done.did.append(f"{name} taken in")


def _check_roster(path: Path, identity: enrolment.Identity) -> None:
    """Raises `CallerError` where the roster does not list this signer with this very key."""
    roster = load_yaml(path, Roster)
    if roster.network != identity.network:
        raise CallerError(f"{path} is of network {roster.network}, this signer of {identity.network}")
    listed = next((signer for signer in roster.signers if signer.name == identity.name), None)
    if listed is None:
        raise CallerError(f"{path} lists no signer {identity.name}: ask who assembled it")
    if listed.fingerprint != identity.fingerprint:
        raise CallerError(
            f"{path} lists another key for {identity.name} ({listed.fingerprint}): do not use this roster"
        )


def _has_both(directory: Path) -> bool:
    return all((directory / name).exists() for name in (ROSTER, POLICY))


def _seal_gate_secrets(place: Place, said: answers.Answers, found: EnclaveFile, kept: FilePin, done: Done) -> None:
    """Where roster and policy are in place and somebody said which secrets."""
    directory, out = place.directory, said.gate_secrets_out
    if found.gate.mode != "signed" or not _has_both(directory) or (directory / found.gate.secrets).exists():
        return
    if said.gate_secrets is not None:
        secrets = read_secrets(said.gate_secrets)
    elif out is not None:
        secrets = enrolment.new_secrets()
        pki.write_new(out, secrets, pki.SECRET_MODE)
    else:
        return
    try:
        with kept.environment() as environment:
            _seal(place, secrets, environment)
    except BaseException:
        if out is not None:
            out.unlink()
        raise
    done.did.append("the gate's secrets sealed")


def _seal(place: Place, secrets: bytes, environment: dict[str, str]) -> None:
    tool = EnclaveTool(place.directory / ENCLAVE, environment, place.owner)
    with tool.sealing() as more:
        enrolment.run_enclave_tool(tool.command("seal-gate-secret", *more), secrets, environment, user=place.owner)
