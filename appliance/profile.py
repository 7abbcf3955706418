"""A client's profile, `client.yaml`: where the API is, which roster is pinned, which key signs requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from appliance.api.credentials import Credential, load_token
from appliance.api.jws import ClientKey, load_client_key
from policies.errors import CallerError
from policies.load import load_yaml
from policies.roster import Roster

HttpsUrl = Annotated[str, msgspec.Meta(pattern=r"^https://")]


class OtherApi(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another coordinator of the network: its API, and the CA of its certificate."""

    api: HttpsUrl
    ca: Path


class ProfileFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`client.yaml` as written. Relative paths are taken from its directory. `client` is the `kid` of its requests.

    `others` are asked in turn where `api` does not answer. To read it shows `token`, a file, or the client certificate
    `certificate` with its `certificate_key`, or both.
    """

    network: str
    api: HttpsUrl
    ca: Path
    roster: Path
    client: str
    key: Path
    token: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    others: Annotated[tuple[OtherApi, ...], msgspec.Meta(max_length=8)] = ()

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("certificate and certificate_key go together")


@dataclass(frozen=True)
class Profile:
    """The profile with its files loaded."""

    api: str
    roster: Roster
    key: ClientKey
    ca: Path
    credential: Credential
    others: tuple[tuple[str, Path], ...] = ()


def load_profile(path: Path, token: Path | None = None) -> Profile:
    """Load a profile; `token` is a token file that counts in place of the profile's.

    Raises `CallerError` where it, its roster, its key or its token cannot be used.
    """
    if not path.is_file():
        raise CallerError(f"no client profile {path}: make one with `keymoot init client`, or name it with --profile")
    file = load_yaml(path, ProfileFile)
    directory = path.resolve().parent
    if not (directory / file.roster).is_file():
        raise CallerError(f"the profile {path} needs the network's roster: put it at {directory / file.roster}")
    roster = load_yaml(directory / file.roster, Roster)
    if roster.network != file.network:
        raise CallerError(f"{path} is for network {file.network}, but its roster is of {roster.network}")
    token = token or _in(directory, file.token)
    credential = Credential(
        token=None if token is None else load_token(token),
        certificate=_in(directory, file.certificate),
        key=_in(directory, file.certificate_key),
    )
    others = tuple((other.api, directory / other.ca) for other in file.others)
    key = load_client_key(directory / file.key, file.client)
    return Profile(file.api, roster, key, directory / file.ca, credential, others)


def _in(directory: Path, file: Path | None) -> Path | None:
    return None if file is None else directory / file
