"""The option `--profile`, and the API client made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from appliance.api.client import Client

DEFAULT_PROFILE = Path("client.yaml")

ProfileOption = Annotated[
    Path,
    typer.Option("--profile", "-p", envvar="KEYMOOT_PROFILE", help="The client's profile (`keymoot init client`)."),
]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token", envvar="KEYMOOT_TOKEN_FILE", help="A token file for reading; else the profile names one."),
]


def open_client(path: Path, token: Path | None = None) -> Client:
    """The API client of a profile. Raises `CallerError` as `load_profile` does."""
    from appliance.profile import load_profile

    profile = load_profile(path, token)
    from appliance.api.client import Client

    return Client.of(profile)
