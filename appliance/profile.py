"""A client's profile, `client.yaml`: where the API is, which roster is pinned, which key signs requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from appliance.api.jws import ClientKey, load_client_key
from policies.errors import CallerError
from policies.load import load_yaml
from policies.roster import Roster


class ProfileFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`client.yaml` as written. Relative paths are taken from its directory. `client` is the `kid` of its requests."""

    network: str
    api: Annotated[str, msgspec.Meta(pattern=r"^https://")]
    ca: Path
    roster: Path
    client: str
    key: Path


@dataclass(frozen=True)
class Profile:
    """The profile with its files loaded."""

    api: str
    roster: Roster
    key: ClientKey
    ca: Path


def load_profile(path: Path) -> Profile:
    """Load a profile. Raises `CallerError` where it, its roster or its key cannot be used."""
    if not path.is_file():
        raise CallerError(f"no client profile {path}: make one with `keymoot init client`, or name it with --profile")
    file = load_yaml(path, ProfileFile)
    directory = path.resolve().parent
    if not (directory / file.roster).is_file():
        raise CallerError(f"the profile {path} needs the network's roster: put it at {directory / file.roster}")
    roster = load_yaml(directory / file.roster, Roster)
    if roster.network != file.network:
        raise CallerError(f"{path} is for network {file.network}, but its roster is of {roster.network}")
    return Profile(file.api, roster, load_client_key(directory / file.key, file.client), directory / file.ca)
