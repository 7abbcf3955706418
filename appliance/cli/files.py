"""Files that a command is given to read."""

from __future__ import annotations

from pathlib import Path

from policies.errors import CallerError


def read_whole(path: Path, max_bytes: int) -> bytes:
    """A file's bytes. Raises `CallerError` where it cannot be read, or is larger: a part of it is never all of it."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        # ValueError: a name with a null character.
        raise CallerError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > max_bytes:
        raise CallerError(f"{path} is larger than {max_bytes} bytes")
    return data
