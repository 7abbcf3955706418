"""The option `--profile`, and the API client made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from appliance.api.client import Client

ENVIRONMENT_VARIABLE = "KEYMOOT_PROFILE"
DEFAULT_PROFILE = Path("client.yaml")

ProfileOption = Annotated[
    Path,
    typer.Option("--profile", "-p", envvar=ENVIRONMENT_VARIABLE, help="The client's profile (`keymoot init client`)."),
]


def open_client(path: Path) -> Client:
    """The API client of a profile. Raises `CallerError` as `load_profile` does."""
    from appliance.profile import load_profile

    profile = load_profile(path)
    from appliance.api.client import Client

    return Client(profile.api, profile.roster, profile.key, profile.ca)
