"""A coordinator's first run, step by step, and again when roster and the operators' CAs have come."""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance import configure, pki
from appliance.api.credentials import new_token, save_token, token_sha256
from appliance.coordinator.config import load_config
from appliance.setup import answers, staging
from appliance.setup.hosts import Place
from appliance.setup.signer import ROSTER, Done
from policies.errors import CallerError
from policies.load import load_yaml
from policies.roster import Roster

FILE, OPERATOR, SIGNERS_CA = "coordinator.yaml", "operator", "signers-ca.pem"


class CoordinatorFile(msgspec.Struct, frozen=True):
    """What a setup looks at of a coordinator.yaml that is there."""

    network: str
    name: str


def is_configured(directory: Path) -> bool:
    """Whether the file is in place, and nothing of a setup that was broken off is left."""
    return (directory / FILE).exists() and not (directory / staging.STAGE).exists()


def set_up(place: Place, said: answers.Answers) -> Done:
    """Configuration, certificates, the operator's token; roster and signers' CAs where they are given.

    Raises `CallerError`; nothing that is there is overwritten.
    """
    directory, done = place.directory, Done(place.directory)
    if is_configured(directory):
        _same(directory, said)
    else:
        _configure(place, said)
        done.did.append("configuration written")
    found = load_yaml(directory / FILE, CoordinatorFile)
    done.network, done.name = found.network, found.name
    if said.roster is not None:
        _take_roster(directory, said.roster, found.network, done)
    if said.signers_ca:
        bundle = b"".join(configure.read_ca(path, "a signer's CA").rstrip() + b"\n" for path in said.signers_ca)
        _put(directory / SIGNERS_CA, bundle, "the signers' CAs taken in", done)
    if (directory / ROSTER).exists():
        done.roster_digest = load_yaml(directory / ROSTER, Roster).digest().hex()
    done.missing = [name for name in (SIGNERS_CA, ROSTER) if not (directory / name).exists()]
    return done


def _same(directory: Path, said: answers.Answers) -> None:
    found = load_yaml(directory / FILE, CoordinatorFile)
    for what, told, there in (("network", said.network, found.network), ("name", said.name, found.name)):
        if told is not None and told != there:
            raise CallerError(
                f"{directory} is set up already, as coordinator {found.name} of network {found.network}: {what} {told} "
                "does not fit, and nothing is overwritten"
            )


def _configure(place: Place, said: answers.Answers) -> None:
    if missing := answers.missing_of_coordinator(said):
        raise CallerError(f"not known yet: {', '.join(missing)}")
    token = new_token()
    setup = answers.coordinator_setup(said, ((OPERATOR, token_sha256(token)),), place.places)
    place.prepare()

    def write(stage: Path) -> None:
        configure.write_coordinator(stage, setup)
        save_token(token, stage / f"{OPERATOR}.token")
        load_config(stage / FILE)

    staging.write_all(place.directory, write)


def _take_roster(directory: Path, source: Path, network: str, done: Done) -> None:
    roster = load_yaml(source, Roster)
    if roster.network != network:
        raise CallerError(f"{source} is of network {roster.network}, this coordinator of {network}")
    _put(directory / ROSTER, configure.read_bytes(source, ROSTER), f"{ROSTER} taken in", done)


def _put(there: Path, data: bytes, did: str, done: Done) -> None:
    if there.exists():
        if there.read_bytes() != data:
            raise CallerError(f"{there} is another file already: nothing is overwritten; compare, then replace it")
        return
    pki.write_new(there, data)
    done.did.append(did)
