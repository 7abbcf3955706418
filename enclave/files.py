"""Files that an enclave writes: whole or not at all, and on disk before anything follows from them."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from enclave.errors import CallerError


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Replace the file, so that it is on disk when this returns. One that is there keeps its owner and mode; a new one
    has `mode`. Raises `OSError`, and `CallerError` where this user may not keep the owner."""
    temporary = path.with_name(path.name + ".new")
    # Made anew: what somebody left under this name would give it another owner and mode.
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        _keep_owner(path, temporary, descriptor)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _keep_owner(path: Path, temporary: Path, descriptor: int) -> None:
    """Give the new file the owner and mode of the one at `path`. Raises `CallerError` where this user may not."""
    with contextlib.suppress(FileNotFoundError):
        old, new = path.stat(), os.fstat(descriptor)
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            try:
                os.fchown(descriptor, old.st_uid, old.st_gid)
            except PermissionError:
                temporary.unlink()
                raise CallerError(f"{path} belongs to another user: run this as its owner, or as root") from None
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
