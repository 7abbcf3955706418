"""What systemd gives the process of a unit, for commands that do its work outside: variables, groups, credentials.

Nothing of it is taken from the process itself: the command may run as root.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 6.0
CREDENTIALS = Path("/run/credentials")


def environment(unit: str) -> dict[str, str]:
    """The variables that a unit and its drop-ins set, and where its credentials are while it runs."""
    pairs = (word.partition("=") for word in shlex.split(_shown("Environment", unit)))
    place = CREDENTIALS / unit
    found = {"CREDENTIALS_DIRECTORY": str(place)} if unit and place.is_dir() else {}
    return {name: value for name, _, value in pairs} | found


def groups(unit: str) -> tuple[int, ...]:
    """The supplementary groups that a unit and its drop-ins set, those that exist."""
    found = []
    for name in _shown("SupplementaryGroups", unit).split():
        with contextlib.suppress(KeyError):
            found.append(grp.getgrnam(name).gr_gid)
    return tuple(found)


def denied_addresses(unit: str) -> str:
    """The networks that a unit's processes may not reach, as systemd says them; empty where it denies none."""
    return _shown("IPAddressDeny", unit)


@dataclass(frozen=True)
class User:
    """Somebody to run a tool as."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def user_of(uid: int, unit: str) -> User | None:
    """The user of a unit's process with its groups; None where this is not root, or they are root's or unknown."""
    if os.geteuid() != 0 or uid == 0:
        return None
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        return None
    more = os.getgrouplist(found.pw_name, found.pw_gid)
    return User(uid, found.pw_gid, tuple({found.pw_gid, *more, *groups(unit)}))


def _shown(setting: str, unit: str) -> str:
    tool = shutil.which("systemctl")
    if not unit or tool is None:
        return ""
    done = subprocess.run(  # noqa: S603
        [tool, "show", f"--property={setting}", "--value", unit],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    return done.stdout.strip()
