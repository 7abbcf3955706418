"""One SQLite file: locked for this process, migrated to the newest schema, opened in WAL with full synchronisation."""

from __future__ import annotations

import fcntl
import os
import pathlib
from typing import Any

import alembic.command
import alembic.config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event

from appliance.store.failures import DATABASE_ERRORS, FULL_REMEDY, StoreFailed, store_failure

MIGRATIONS = pathlib.Path(__file__).parent / "migrations"
FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
BUSY_TIMEOUT_S = 5.0
# After a disk was full, writing starts again once there is room for more than the next commit.
ROOM_BYTES = 256 * 1024


class Database:
    """`writer` leaves transactions to its user; `reader` is one connection that sees what is committed."""

    def __init__(self, path: pathlib.Path, lock: int, writer: Engine, reading: Engine) -> None:
        self.path, self.writer = path, writer
        self._lock, self._reading = lock, reading
        self.reader: Connection = reading.connect()

    @classmethod
    def open(cls, path: pathlib.Path, schema: str) -> Database:
        """Open or create the file at `path` and migrate it to the newest version of `schema`.

        Raises `StoreFailed`: held by another process, not accessible, damaged, or of a newer release.
        """
        lock = _lock(path)
        try:
            migrating = _engine(path, "BEGIN IMMEDIATE")
            with migrating.begin() as connection:
                _migrate(connection, path, schema)
            migrating.dispose()
            return cls(path, lock, _engine(path, None), _engine(path, None))
        except DATABASE_ERRORS as error:
            os.close(lock)
            raise store_failure(path, error) from error
        except StoreFailed:
            os.close(lock)
            raise

    def require_room(self) -> None:
        """Raises `StoreFailed` where the file system has less than `ROOM_BYTES` left, or cannot be asked."""
        try:
            found = os.statvfs(self.path.parent)
        except OSError as error:
            raise StoreFailed(
                self.path, error.strerror or str(error), "see whether its disk is there", lasting=False
            ) from None
        if found.f_bavail * found.f_frsize < ROOM_BYTES:
            raise StoreFailed(self.path, "no room on its disk", FULL_REMEDY, lasting=False)

    def close(self) -> None:
        """Close every connection, then let the lock go."""
        self.reader.close()
        self._reading.dispose()
        self.writer.dispose()
        os.close(self._lock)


def _lock(path: pathlib.Path) -> int:
    """Make the file private to its owner and take the lock beside it. Raises `StoreFailed`."""
    try:
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        remedy = "check that the directory exists, belongs to this user, can be written and has room"
        raise StoreFailed(path, error.strerror or str(error), remedy, lasting=True) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StoreFailed(
            path, "another process uses it", "end that process, or name another file", lasting=True
        ) from None
    return lock


def _engine(path: pathlib.Path, begin: str | None) -> Engine:
    """`begin` None: SQLAlchemy begins no transaction."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        # A damaged text is found by whoever reads the row, and is no error of the whole query.
        connection.text_factory = _text

    if begin is None:
        return engine.execution_options(isolation_level="AUTOCOMMIT")

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _migrate(connection: Connection, path: pathlib.Path, schema: str) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("version_locations", str(MIGRATIONS / schema))
    config.set_main_option("path_separator", "newline")
    config.attributes["connection"] = connection
    try:
        alembic.command.upgrade(config, "head")
    except CommandError as error:
        raise StoreFailed(
            path, f"its schema is not known here: {error}", "use the release that wrote it", lasting=True
        ) from error
