"""Every check of `keymoot doctor`, in order, for the directories of this host and for the network."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from appliance import enrolment, layout, unit_settings
from appliance.checkup import confinement, disks, host, machine, others
from appliance.checkup.checks import Check, Looked
from appliance.checkup.conformance import check_gate
from appliance.checkup.findings import Finding, note, problem
from appliance.coordinator.config import load_config as load_coordinator
from appliance.gate.config import load_config as load_gate
from appliance.hsm_check import check_module
from appliance.signer.config import SignerConfig, load_config
from appliance.signer.status import SignerStatus
from policies.errors import CallerError
from policies.load import load_yaml

CONFIGURATIONS = ("enclave.yaml", "signer.yaml", "coordinator.yaml", "gate.yaml")
HSM_TIMEOUT_S = 25.0
CREDENTIALS = "CREDENTIALS_DIRECTORY"
PROVISION = "keymoot setup (or keymoot init) makes the keys; compare key labels and token in enclave.yaml."


@dataclass(frozen=True)
class Around:
    """What the checks are given of the world. `gate_secrets`: the handler's copy, to ask the gate more than whether it
    is there."""

    now: Callable[[], datetime.datetime] = field(default=lambda: datetime.datetime.now(datetime.UTC))
    root: Path = Path("/")
    clock_state: Callable[[], int] = machine.clock_state
    exposure: Callable[[str], float | None] = confinement.systemd_exposure
    gate_secrets: Path | None = None


class _HsmSection(msgspec.Struct, frozen=True):
    """What is needed here of the section `hsm`."""

    pin: str
    network: bool = False


class _EnclaveFile(msgspec.Struct, frozen=True):
    """What is needed here of enclave.yaml."""

    hsm: _HsmSection


@dataclass
class _Seen:
    """What earlier checks of one directory have found out."""

    directory: Path
    name: str
    enclave: host.DescribedEnclave | None = None
    config: SignerConfig | None = None
    status: SignerStatus | None = None
    enclave_process: confinement.Running | None = None


def host_checks(around: Around, *, enclave: bool) -> Iterator[Check]:
    """What does not depend on a directory. `enclave`: whether one is meant to run here."""
    yield Check("clock", machine.HOST, partial(machine.check_clock, around.clock_state))
    if enclave:
        yield Check("snapshots", machine.HOST, partial(machine.check_copies, around.root))


def directory_checks(directory: Path, around: Around) -> Iterator[Check]:
    """All of one directory. Take one after the other: later ones depend on what earlier ones have found."""
    has = {name for name in CONFIGURATIONS if (directory / name).exists()}
    if not has:
        raise CallerError(f"{directory} holds none of {', '.join(CONFIGURATIONS)}: name a directory made by `setup`")
    if has & {"enclave.yaml", "signer.yaml"}:
        yield from _signer(directory, around, has)
    if "coordinator.yaml" in has:
        yield from _coordinator(directory, around)
    if "gate.yaml" in has:
        yield from _gate_handler(directory, around)
    yield Check("files", directory.resolve().name, partial(disks.check_modes, directory.resolve().name, directory))


# --- a signer's directory, or its enclave's, or both ---


def _signer(directory: Path, around: Around, has: set[str]) -> Iterator[Check]:
    seen = _Seen(directory, directory.resolve().name)
    yield Check("configuration", seen.name, partial(_configuration, seen, has))
    _find_enclave(seen, around)
    if seen.config is not None:
        yield Check("processes", seen.name, partial(_processes, seen, seen.config))
    elif seen.enclave_process is None:
        missing = problem(seen.name, "no enclave runs", f"keymoot enclave run -c {directory / 'enclave.yaml'}")
        yield Check("processes", seen.name, lambda: Looked("", [missing]))
    if "enclave.yaml" in has:
        yield Check("hsm", seen.name, partial(_hsm, seen), "keymoot hsm check -c enclave.yaml shows more.")
    if seen.config is not None:
        yield Check("connections", seen.name, partial(_connections, seen, seen.config))
        yield Check("clocks", seen.name, partial(machine.check_clocks, seen.name, seen.config, around.now))
        yield Check("agreement", seen.name, partial(_agreement, seen))
        if seen.config.gate is not None:
            yield Check("gate", seen.name, partial(_gate, seen, seen.config))
            if around.gate_secrets is not None:
                look = partial(check_gate, seen.name, seen.config.gate, around.gate_secrets)
                yield Check("gate-conformance", seen.name, look)
        yield Check("certificates", seen.name, partial(_certificates, seen.name, directory, around))
        yield Check("disk", seen.name, partial(disks.check_room, seen.name, seen.config.state))
        yield Check("store", seen.name, partial(disks.check_store, seen.name, seen.config.state))
    yield from _confined(seen, around)


def _configuration(seen: _Seen, has: set[str]) -> Looked:
    found: list[Finding] = []
    enclave, signer = seen.directory / "enclave.yaml", seen.directory / "signer.yaml"
    if "enclave.yaml" in has:
        seen.enclave = host.or_finding(lambda: host.described(enclave), found, seen.name, enclave.name)
    if "signer.yaml" in has:
        seen.config = host.or_finding(lambda: load_config(signer), found, seen.name, signer.name)
    if seen.enclave is None:
        return Looked("signer.yaml is right", found)
    seen.name = seen.enclave.signer
    found += host.of_enclave(seen.name, seen.enclave)
    if seen.config is not None:
        found += host.fit(seen.name, seen.config, seen.enclave)
    return Looked(f"signer {seen.enclave.index} of network {seen.enclave.network}", found)


def _hsm(seen: _Seen) -> Looked:
    path, process = seen.directory / "enclave.yaml", seen.enclave_process
    if seen.status is not None and "refused the PIN" in seen.status.reason:
        # Tokens lock after some wrong PINs: this is not to be one more.
        return Looked("", [problem(seen.name, seen.status.reason, _right_pin(path))])
    environment = {**os.environ, **unit_settings.environment("" if process is None else process.unit)}
    if load_yaml(path, _EnclaveFile).hsm.pin.startswith("credential:") and CREDENTIALS not in environment:
        # Run each day, this could be the wrong PIN that locks the token; who asks for one attempt gets it.
        what = "the PIN is a systemd credential, and the enclave's unit does not run or this is not root"
        return Looked("", [note(seen.name, f"not tried: {what}", f"As root, once: keymoot hsm check -c {path}")])
    # A vendor's module is not run as root where the enclave does not.
    user = None if process is None else unit_settings.user_of(process.uid, process.unit)
    told = check_module(enrolment.enclave_command("hsm-check", path), HSM_TIMEOUT_S, environment, user)
    found = [problem(seen.name, one.detail, PROVISION) for one in told.keys if not one.good]
    if told.profile is None:
        found.append(problem(seen.name, f"Keymoot cannot use token {told.token}: {told.reason}", "Use another module."))
    identity = next((one.detail for one in told.keys if one.use == "identity" and one.good), "")
    if seen.enclave is not None and identity and identity != seen.enclave.fingerprint:
        found.append(
            problem(
                seen.name,
                f"the HSM's identity key ({identity}) is not the one the roster lists ({seen.enclave.fingerprint})",
                "Compare token and key label in enclave.yaml, and the roster with identity.json.",
            )
        )
    return Looked(f"token {told.token} by {told.manufacturer}: seals with {told.profile}, keys cannot leave", found)


def _right_pin(config: Path) -> str:
    host = layout.signer_at(config.parent)
    if not load_yaml(config, _EnclaveFile).hsm.pin.startswith("credential:"):
        return "Write the right PIN into that file; the enclave takes it up."
    if host is None:
        return "Give its unit the right PIN as that credential, and restart it: a credential is read at its start."
    return f"As root: {host.new_pin}"


def _processes(seen: _Seen, config: SignerConfig) -> Looked:
    seen.status, found = host.running(seen.name, seen.directory, config)
    status = seen.status
    if status is not None and status.enclave_version and status.enclave_version != status.version:
        found.append(
            problem(
                seen.name,
                f"its signer runs version {status.version}, its enclave {status.enclave_version}",
                "Restart the older one: an upgrade takes effect then.",
            )
        )
    return Looked("" if status is None else f"signer and enclave run version {status.version}, {status.enclave}", found)


def _connections(seen: _Seen, config: SignerConfig) -> Looked:
    found = host.coordinators(seen.name, seen.status) if seen.status else host.reachable(seen.name, config)
    return Looked(f"connected at {', '.join(one.name for one in config.coordinators)}", list(found))


def _agreement(seen: _Seen) -> Looked:
    if seen.status is None or seen.enclave is None or not seen.status.roster_digest:
        return Looked("nothing runs that could be compared with roster.yaml and policy.yaml")
    return Looked(
        f"the enclave runs with roster {seen.enclave.roster_digest[:16]} and policy {seen.enclave.policy_digest[:16]}",
        list(host.agreement(seen.name, seen.enclave, seen.status)),
    )


def _gate(seen: _Seen, config: SignerConfig) -> Looked:
    url = "" if config.gate is None else config.gate.url
    return Looked(f"{url} answers", list(host.gate(seen.name, seen.directory, config, seen.status)))


def _certificates(name: str, directory: Path, around: Around) -> Looked:
    return Looked("all are good for 30 days", list(host.certificates(name, directory, around.now())))


def _find_enclave(seen: _Seen, around: Around) -> None:
    pid = None if seen.enclave is None else confinement.who_listens(Path(seen.enclave.socket))
    seen.enclave_process = None if pid is None else confinement.running(pid, around.root)


def _confined(seen: _Seen, around: Around) -> Iterator[Check]:
    enclave = seen.enclave_process
    pid = None if seen.config is None else confinement.who_locks(seen.config.state, around.root)
    signer = None if pid is None else confinement.running(pid, around.root)
    if seen.enclave is not None:
        look = partial(confinement.check_filter, seen.name, seen.enclave.unfiltered, enclave)
        yield Check("filter", seen.name, look)
    if enclave is not None:
        yield Check("memory", seen.name, partial(confinement.check_memory, seen.name, enclave, around.root))
        yield Check("hardening", seen.name, partial(_enclaves_hardening, seen, enclave, around))
        names = (*disks.TRUSTED, *confinement.NOT_THE_SIGNERS)
        files = [seen.directory, *(seen.directory / name for name in names)]
        yield Check("separation", seen.name, partial(confinement.check_separation, seen.name, enclave, signer, files))
    if signer is not None:
        yield Check("hardening", seen.name, partial(_hardening, "signer", seen.name, signer, around))
        yield Check("reach", seen.name, partial(confinement.check_reach, seen.name, signer))


def _enclaves_hardening(seen: _Seen, enclave: confinement.Running, around: Around) -> Looked:
    network = load_yaml(seen.directory / "enclave.yaml", _EnclaveFile).hsm.network
    return confinement.check_hardening("enclave", seen.name, enclave, around.exposure, network=network)


def _hardening(kind: str, name: str, process: confinement.Running, around: Around) -> Looked:
    return confinement.check_hardening(kind, name, process, around.exposure)


# --- a coordinator's and a gate's directory ---


def _coordinator(directory: Path, around: Around) -> Iterator[Check]:
    name = directory.resolve().name
    yield Check("configuration", name, partial(_loads, directory / "coordinator.yaml", load_coordinator))
    yield Check("processes", name, lambda: Looked("answers signers and clients", list(others.coordinator(directory))))
    yield Check("certificates", name, partial(_certificates, name, directory, around))
    try:
        config = load_coordinator(directory / "coordinator.yaml")
    except CallerError:
        return
    good = "each signer's certificate is of its own operator's authority, or one organisation runs all"
    yield Check("authorities", name, lambda: Looked(good, list(others.authorities(name, config))))
    yield Check("disk", name, partial(disks.check_room, name, config.state))
    yield Check("store", name, partial(disks.check_store, name, config.state))
    pid = confinement.who_locks(config.state, around.root)
    process = None if pid is None else confinement.running(pid, around.root)
    if process is not None:
        yield Check("hardening", name, partial(_hardening, "coordinator", name, process, around))


def _gate_handler(directory: Path, around: Around) -> Iterator[Check]:
    name = directory.resolve().name
    yield Check("configuration", name, partial(_loads, directory / "gate.yaml", load_gate))
    yield Check("processes", name, lambda: Looked("answers its signer", list(others.gate(directory))))
    yield Check("certificates", name, partial(_certificates, name, directory, around))


def _loads(path: Path, load: Callable[[Path], object]) -> Looked:
    load(path)
    return Looked(f"{path.name} is right")
