"""What a failing database means to an operator: every SQLite error becomes `Unavailable` with a remedy."""

from __future__ import annotations

import pathlib
import sqlite3

from sqlalchemy.exc import DBAPIError

from policies.errors import Unavailable

FULL_REMEDY = "the disk is full: free space, work goes on by itself"
DAMAGED_REMEDY = "restore it from a copy of this store; nothing else is affected"
RESTORE_REMEDY = "the file is damaged: restore it from a backup"
REMEDIES = {
    "SQLITE_FULL": FULL_REMEDY,
    "SQLITE_READONLY": "the file or its file system is read-only: make it writable and restart",
    "SQLITE_CANTOPEN": "the file cannot be opened: check that its directory exists and belongs to this user",
    "SQLITE_PERM": "the file cannot be opened: check its owner and mode",
    "SQLITE_BUSY": "another process holds the file: end it",
    "SQLITE_LOCKED": "another process holds the file: end it",
    "SQLITE_IOERR": "the disk reports errors: check the system's log, then restart",
    "SQLITE_CORRUPT": RESTORE_REMEDY,
    "SQLITE_NOTADB": "the file is no database: restore it from a backup",
}
# SQLite repeats a damaged schema in its message, which the driver then cannot decode.
DATABASE_ERRORS = (DBAPIError, sqlite3.Error, UnicodeDecodeError)
# The file that indexes the write-ahead log could not grow: nothing was written.
FULL_TOO = ("SQLITE_IOERR_SHMSIZE",)
LASTING = ("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB")
UNKNOWN = "see the message; restart when its cause is gone"


class QueueFull(Unavailable):
    """So many writes wait that this one was not taken: it may be tried again shortly."""


class StoreFailed(Unavailable):
    """The database refused. `lasting`: what is on disk is uncertain now, so nothing is written until a restart."""

    def __init__(self, path: pathlib.Path | str, reason: str, remedy: str, *, lasting: bool) -> None:
        super().__init__(f"store {path}: {reason}", remedy)
        self.lasting = lasting


class Damaged(Unavailable):
    """One record or row cannot be read. Nothing else is affected."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} is damaged in the store: {reason[:200]}", DAMAGED_REMEDY)


def store_failure(path: pathlib.Path | str, error: DBAPIError | sqlite3.Error | UnicodeDecodeError) -> StoreFailed:
    """`error` in an operator's words."""
    if isinstance(error, UnicodeDecodeError):
        return StoreFailed(path, "its schema is no text", RESTORE_REMEDY, lasting=True)
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorname", "") if isinstance(cause, sqlite3.Error) else ""
    root = "SQLITE_FULL" if code in FULL_TOO else "_".join(code.split("_")[:2])
    return StoreFailed(path, str(cause)[:200], REMEDIES.get(root, UNKNOWN), lasting=root in LASTING)
