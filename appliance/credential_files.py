"""Files that systemd hands to a unit as credentials: `credential:NAME` in a configuration, in place of a path."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from policies.errors import CallerError

PREFIX = "credential:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def resolved(base: Path, path: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """`path` of a configuration in `base`: relative paths are relative to it, and `credential:NAME` is the file NAME of
    the unit's credentials. For a command that no unit runs (`keymoot status` of root), that is NAME in `base`.

    Raises `CallerError` for what is no credential's name.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return base / path
    name = text.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise CallerError(f"{text}: a credential's name is letters, digits, dots, dashes and _")
    return Path(environment.get("CREDENTIALS_DIRECTORY") or base) / name
