"""Files that come into a directory all or none: written beside, then put in place; what was broken off is gone on with.

Nothing that is there is overwritten.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from policies.errors import CallerError

STAGE, WHOLE = ".setup", ".whole"


def write_all(directory: Path, write: Callable[[Path], None]) -> bool:
    """Have `write` fill a new directory, and put its files into `directory`. False where that was done before already
    and had only to be ended.

    Raises `CallerError` where a file of that name is there, and what `write` raises: nothing has come in then.
    """
    stage = directory / STAGE
    fresh = not (stage / WHOLE).exists()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        if fresh:
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(mode=0o700)
            try:
                write(stage)
            except BaseException:
                shutil.rmtree(stage, ignore_errors=True)
                raise
            (stage / WHOLE).touch(0o600)
        place(stage, directory)
    except OSError as error:
        raise CallerError(f"cannot write into {directory}: {error.strerror}") from None
    return fresh


def place(stage: Path, directory: Path) -> None:
    """Put every file of `stage` into `directory`, then remove `stage`. Raises `CallerError` before anything is put
    where one is there that is another."""
    files = sorted(path for path in stage.iterdir() if path.is_file() and path.name != WHOLE)
    for path in files:
        there = directory / path.name
        if there.exists() and not there.samefile(path):
            shutil.rmtree(stage)
            raise CallerError(f"{there} exists: nothing is overwritten; remove it first or choose another directory")
    for path in files:
        there = directory / path.name
        if not there.exists():
            os.link(path, there)
    for path in stage.iterdir():
        if path.is_dir():
            (directory / path.name).mkdir(mode=0o700, exist_ok=True)
    # The mark goes last: without it, what is left of the stage is thrown away.
    for path in files:
        path.unlink()
    shutil.rmtree(stage)
