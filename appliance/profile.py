"""A client's profile, `client.yaml`, and the API client made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from policies.errors import CallerError

if TYPE_CHECKING:
    from appliance.api.client import Client

ENVIRONMENT_VARIABLE = "KEYMOOT_PROFILE"

ProfileOption = Annotated[
    Path,
    typer.Option("--profile", "-p", envvar=ENVIRONMENT_VARIABLE, help="The client's profile (`keymoot init client`)."),
]
DEFAULT_PROFILE = Path("client.yaml")


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`client.yaml`. Relative paths are taken from its directory. `client` is the `kid` of its requests."""

    network: str
    api: Annotated[str, msgspec.Meta(pattern=r"^https://")]
    ca: str
    roster: str
    client: str
    key: str


def open_client(path: Path) -> Client:
    """The API client of a profile. Raises `CallerError` for a profile, roster or key that cannot be used."""
    from appliance.api.client import Client
    from appliance.api.jws import load_client_key
    from policies.load import load_yaml
    from policies.roster import Roster

    if not path.is_file():
        raise CallerError(f"no client profile {path}: make one with `keymoot init client`, or name it with --profile")
    profile = load_yaml(path, Profile)
    directory = path.resolve().parent
    if not (directory / profile.roster).is_file():
        raise CallerError(f"the profile {path} needs the network's roster: put it at {directory / profile.roster}")
    roster = load_yaml(directory / profile.roster, Roster)
    if roster.network != profile.network:
        raise CallerError(f"{path} is for network {profile.network}, but its roster is of {roster.network}")
    key = load_client_key(directory / profile.key, profile.client)
    return Client(profile.api, roster, key, directory / profile.ca)
