"""The disk under a store, the store itself, and who may read or write a process's files."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from appliance.checkup.checks import Looked
from appliance.checkup.findings import Finding, problem, warning

FULL_BYTES, LOW_BYTES, LOW_INODES = 64 * 1024**2, 512 * 1024**2, 1000
STORE_CHECK_S = 20.0
_STEPS = 10_000
SECRET_SUFFIXES, SECRET_NAMES = (".key", ".token"), ("gate-secrets.json", "pin")
TRUSTED = ("enclave.yaml", "roster.yaml", "policy.yaml", "gate-secrets.sealed", "accepted-states.yaml")
SETTINGS = ("signer.yaml", "coordinator.yaml", "gate.yaml", "clients.yaml")


def check_room(name: str, store: Path) -> Looked:
    """Room on the disk of a store."""
    place = next(one for one in (store.parent, *store.parent.parents) if one.exists())
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    return Looked(f"{free / 1024**3:.1f} GiB free at {place}", list(_room(name, place, free, found)))


def _room(name: str, place: Path, free: int, found: os.statvfs_result) -> Iterator[Finding]:
    remedy = "Make room before it is full: a process refuses what it cannot keep."
    if free < FULL_BYTES:
        yield problem(name, f"{free // 1024**2} MiB are free on the disk of {place}", remedy)
    elif free < LOW_BYTES:
        yield warning(name, f"{free // 1024**2} MiB are free on the disk of {place}", remedy)
    if found.f_files and found.f_favail < LOW_INODES:
        yield warning(name, f"{found.f_favail} files more fit on the disk of {place}", remedy)


def check_store(name: str, store: Path, limit_s: float = STORE_CHECK_S) -> Looked:
    """SQLite's own check of the whole file, while its process may use it. Nothing is written."""
    if not store.exists():
        return Looked(f"{store} is made at the first start")
    end_s = time.monotonic() + limit_s
    connection = sqlite3.connect(f"file:{quote(str(store))}?mode=ro", uri=True, timeout=5.0)
    connection.set_progress_handler(lambda: time.monotonic() > end_s, _STEPS)
    try:
        told = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.Error as error:
        told = [str(error)]
        if "interrupted" in told:
            remedy = f"With its process stopped: sqlite3 {store} 'PRAGMA integrity_check'."
            return Looked("", [warning(name, f"{store} was not checked to its end in {limit_s:.0f} s", remedy)])
    finally:
        connection.close()
    if told != ["ok"]:
        remedy = "Stop its process, put the store of a copy back that is not older, and see the disk's own log."
        return Looked("", [problem(name, f"{store} is damaged: {'; '.join(told)[:300]}", remedy)])
    return Looked(f"{store.name} is whole")


def check_modes(name: str, directory: Path) -> Looked:
    """Who may read the secrets of a directory, and write what its processes believe."""
    return Looked("secrets are private, configuration is not for all to write", list(_modes(name, directory)))


def _modes(name: str, directory: Path) -> Iterator[Finding]:
    for path in sorted(directory.iterdir()):
        mode = stat.S_IMODE(path.stat().st_mode) if path.is_file() else 0
        if mode & 0o007 and (path.suffix in SECRET_SUFFIXES or path.name in SECRET_NAMES):
            yield problem(
                name,
                f"everybody may use {path.name} (mode {mode:04o})",
                f"chmod o-rwx {path}, and renew it if others have accounts here.",
            )
        if mode & 0o002 and path.name in (*TRUSTED, *SETTINGS):
            yield problem(name, f"everybody may write {path.name} (mode {mode:04o})", f"chmod o-w {path}")
