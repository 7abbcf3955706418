"""Files that hold a secret and belong to one user alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from policies.errors import CallerError

OTHERS = 0o077


def read_private(path: Path, what: str, max_bytes: int) -> bytes:
    """The bytes of a secret's file; `what` it is, for messages. Raises `CallerError` where it is away, larger, or open
    to others."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        # ValueError: a name with a null character.
        raise CallerError(f"cannot read {what} {path}: {getattr(error, 'strerror', None) or error}") from None
    if mode & OTHERS:
        raise CallerError(f"{what} {path} has mode {mode:04o}: run chmod 600 on it")
    if len(data) > max_bytes:
        raise CallerError(f"{what} {path} is larger than {max_bytes} bytes")
    return data
