"""Statements that run for every signature: written in SQLAlchemy, compiled once, run on the driver's own connection.

Through SQLAlchemy's engine an insert costs about 150 µs of the interpreter's time, on the driver's connection about 10.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import BindParameter, Connection, Table, bindparam
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.sql.expression import ClauseElement

_DIALECT = sqlite.dialect(paramstyle="named")


class Statement:
    """A compiled statement; what is a `parameter` in it must be among the values of `run`."""

    def __init__(self, clause: ClauseElement) -> None:
        compiled = clause.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        self._text = str(compiled)
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}

    def run(self, connection: Connection, values: Mapping[str, object]) -> sqlite3.Cursor:
        """Raises `sqlite3.Error`."""
        return driver(connection).execute(self._text, {**self._constants, **values} if self._constants else values)

    def one(self, connection: Connection, values: Mapping[str, object]) -> dict[str, Any] | None:
        """The only row, by column; None where there is none. Raises `sqlite3.Error`."""
        cursor = self.run(connection, values)
        row = cursor.fetchone()
        return None if row is None else dict(zip([column[0] for column in cursor.description], row, strict=True))

    def all(self, connection: Connection, values: Mapping[str, object]) -> list[dict[str, Any]]:
        """Every row, by column. Raises `sqlite3.Error`."""
        cursor = self.run(connection, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def insertion(table: Table, *, without: Collection[str]) -> Statement:
    """Inserts a row of all columns but those `without` a value yet."""
    names = [column.name for column in table.c if column.name not in without]
    return Statement(insert(table).values({name: parameter(name) for name in names}))


def parameter(name: str) -> BindParameter[Any]:
    """A named parameter of a `Statement`."""
    return bindparam(name, required=False)


def driver(connection: Connection) -> sqlite3.Connection:
    """The driver's connection beneath SQLAlchemy's."""
    beneath = connection.connection.dbapi_connection
    assert isinstance(beneath, sqlite3.Connection)
    return beneath
