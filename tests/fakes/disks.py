"""Small file systems that a test can fill up: tmpfs, mounted as root."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

PIECE = bytes(4096)


class Disk:
    """A mounted file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Leave no room."""
        with self._ballast.open("ab", buffering=0) as file:
            while _room(file):
                pass

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink()


def _room(file: BinaryIO) -> bool:
    try:
        return file.write(PIECE) > 0
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return False
        raise


@contextmanager
def small_disk(path: Path, size_kib: int) -> Iterator[Disk]:
    """A tmpfs at `path`. Skips the test where this user may not mount."""
    path.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size_kib}k,mode=700", "tmpfs", str(path))
    try:
        yield Disk(path)
    finally:
        unmount(path)


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """`path` on a read-only mount of itself. Skips the test where this user may not mount."""
    mount("--bind", str(path), str(path))
    try:
        mount("-o", "remount,bind,ro", str(path))
        yield
    finally:
        unmount(path)


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting needs root and a host that allows it: {done.stderr.strip()}")


def unmount(path: Path) -> None:
    """At once, also where a process still has a file open there."""
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["umount", "-l", os.fspath(path)], capture_output=True, check=False)
