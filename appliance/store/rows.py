"""Rows as they come from disk. SQLite hands out whatever a damaged page says, so every value's type is checked: a
damaged row is unavailable by itself, and the others are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import structlog

from appliance.store.database import Database
from appliance.store.failures import DATABASE_ERRORS, Damaged, store_failure
from appliance.store.statements import Statement

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True)
class Page(Generic[T]):
    """The whole ones of a page's rows. `following`: after this number the next page begins, None where there is none;
    damaged rows count, so that they end no list."""

    rows: tuple[T, ...]
    following: int | None


def fetch(database: Database, statement: Statement, values: Mapping[str, object]) -> list[dict[str, Any]]:
    """All rows, by column, as they are stored. Raises `StoreFailed`."""
    try:
        return statement.all(database.reader, values)
    except DATABASE_ERRORS as error:
        raise store_failure(database.path, error) from error


def parse_row(row: Mapping[str, Any], kind: type[T], what: str) -> T:
    """`row` as a `kind`. Raises `Damaged`."""
    try:
        return msgspec.convert(row, kind, strict=True, builtin_types=(bytes,))
    except (msgspec.ValidationError, OverflowError) as error:
        raise Damaged(what, str(error)) from None


def parse_rows(rows: Iterable[Mapping[str, Any]], kind: type[T]) -> list[T]:
    """The rows that are whole; of each other one the log says that it is left out."""
    whole = []
    for row in rows:
        try:
            whole.append(parse_row(row, kind, f"row {row.get('seq')!r} ({str(row.get('id'))[:64]!r})"))
        except Damaged as error:
            log.error("row-damaged", reason=str(error)[:512])
    return whole


def fetch_page(
    database: Database, statement: Statement, values: Mapping[str, object], limit: int, kind: type[T]
) -> Page[T]:
    """At most `limit` rows by their `seq`, read by a `statement` that takes it as `most`. Raises `StoreFailed`."""
    rows = fetch(database, statement, {**values, "most": limit})
    return Page(tuple(parse_rows(rows, kind)), rows[-1]["seq"] if len(rows) == limit else None)
