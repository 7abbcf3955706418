"""Where a setup writes and as whom its tools run: beside each other in any directory, or as the package lays it out."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance import layout, unit_settings
from appliance.setup.pins import EncryptedPin, FilePin
from appliance.templates import BESIDE, Places
from appliance.unit_settings import User
from policies.errors import CallerError


@dataclass(frozen=True)
class Place:
    """A directory of configuration. `units`: what runs it, empty for a directory of one's own. `owner`: the enclave's
    user, None where everything runs as who runs this."""

    directory: Path
    places: Places = BESIDE
    units: tuple[str, ...] = ()
    owner: User | None = None
    group: int | None = None

    def prepare(self) -> None:
        """Make the directory, for its owner alone or as the package does. Raises `CallerError`."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.group is not None:
                os.chown(self.directory, 0, self.group)
                self.directory.chmod(layout.DIRECTORY_MODE)
        except OSError as error:
            raise CallerError(f"cannot make {self.directory}: {error.strerror}; an installed host needs root") from None


def signer_place(directory: Path | None, instance: str | None) -> tuple[Place, Callable[[], FilePin]]:
    """Where a signer goes, and how its PIN is kept. Without `directory`, where the package has it."""
    host = layout.SignerHost(instance) if directory is None else layout.signer_at(directory)
    if host is None:
        assert directory is not None
        return Place(directory), lambda: FilePin(directory)
    enclave = _user(layout.ENCLAVE_USER, layout.GROUP, unit_settings.groups(host.units[0]))
    place = Place(host.configuration, host.places, host.units, enclave, enclave.gid)
    return place, lambda: EncryptedPin(
        layout.PIN_CREDENTIAL, host.pin_file, (enclave.uid, enclave.gid), unit_settings.environment(host.units[0])
    )


def coordinator_place(directory: Path | None, instance: str | None) -> Place:
    """Where a coordinator goes."""
    host = layout.CoordinatorHost(instance)
    if directory is not None and directory.resolve() != host.configuration:
        return Place(directory)
    user = _user(layout.COORDINATOR_USER, layout.COORDINATOR_USER)
    return Place(host.configuration, host.places, (host.unit,), user, user.gid)


def _user(name: str, group: str, more: tuple[int, ...] = ()) -> User:
    try:
        found, gid = pwd.getpwnam(name), grp.getgrnam(group).gr_gid
    except KeyError:
        raise CallerError(
            f"this machine has no user {name}: install the package, or name a directory of your own with --directory"
        ) from None
    return User(found.pw_uid, gid, tuple({gid, *more, *os.getgrouplist(name, found.pw_gid)}))
