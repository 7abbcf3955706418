"""How SQLite finds rows: no statement of a request's path reads a whole table, however many keys there are."""

from __future__ import annotations

import contextlib
import importlib
import pathlib
import pkgutil
import sqlite3
from collections.abc import Iterator

import pytest

import appliance.store
from appliance.store import CoordinatorStore, SignerStore
from appliance.store.accepted import Accepted, Releasing
from appliance.store.answers import AnswerStore
from appliance.store.certificates import Certificates
from appliance.store.keys import LearnedKey
from appliance.store.statements import Statement

# The end of the audit chain: one row, from the end.
ONE_ROW = "signer._SELECT_HEAD"

MODULES = [
    importlib.import_module(f"appliance.store.{module.name}")
    for module in pkgutil.iter_modules(appliance.store.__path__)
    if module.name != "migrations"
]


def held_by(name: str, value: object) -> Iterator[tuple[str, Statement]]:
    """The statements that `value` is or holds."""
    match value:
        case Statement():
            yield name, value
        case tuple():
            for number, part in enumerate(value):
                yield from held_by(f"{name}[{number}]", part)
        case Releasing() | Certificates() | AnswerStore():
            for part, held in vars(value).items():
                yield from held_by(f"{name}.{part}", held)


@pytest.fixture(scope="module")
def statements() -> dict[str, Statement]:
    """Every statement that a module of the stores has made, and those of the parts that make their own."""
    found = {}
    for module in MODULES:
        short = module.__name__.rpartition(".")[2]
        for name, value in vars(module).items():
            found |= dict(held_by(f"{short}.{name}", value))
    return found


@pytest.fixture(scope="module")
def databases(
    tmp_path_factory: pytest.TempPathFactory, statements: dict[str, Statement]
) -> Iterator[list[sqlite3.Connection]]:
    """Both stores with their newest schema; what only they hold joins `statements`."""
    directory, found = tmp_path_factory.mktemp("plans"), []
    for kind in (CoordinatorStore, SignerStore):
        path = directory / f"{kind.__name__}.db"
        store = kind.open(path)
        for name, value in vars(store).items():
            statements |= dict(held_by(f"{kind.__name__}.{name}", value))
        store._database.close()
        found.append(sqlite3.connect(path))
    yield found
    for database in found:
        database.close()


def plan(databases: list[sqlite3.Connection], statement: Statement) -> list[str]:
    """The steps of SQLite's plan, in the one database that has the tables."""
    for database in databases:
        with contextlib.suppress(sqlite3.OperationalError):
            rows = database.execute("EXPLAIN QUERY PLAN " + statement._text, Anything(statement._constants)).fetchall()
            return [row[3] for row in rows]
    raise AssertionError(statement._text)


class Anything(dict[str, object]):
    """A value for each parameter."""

    def __missing__(self, name: str) -> object:
        return 1


def test_every_statement_finds_its_rows_by_an_index(
    databases: list[sqlite3.Connection], statements: dict[str, Statement]
) -> None:
    plans = {name: plan(databases, each) for name, each in statements.items()}
    assert {"keys._KEYS_TO_ACTIVATE", "coordinator._RELEASE[0]._free", "SignerStore.certificates._after"} <= set(plans)
    assert plans.pop(ONE_ROW) == ["SCAN audit"]
    assert {name: steps for name, steps in plans.items() if any("SCAN" in step for step in steps)} == {}


async def test_keys_that_a_signer_lacks_are_found_among_all_newest_first(tmp_path: pathlib.Path) -> None:
    store = CoordinatorStore.open(tmp_path / "coordinator.db")
    usable_by = {1: (1, 2, 3), 2: (1, 3), 3: (1, 2, 3), 4: (3,), 5: ()}
    for number in usable_by:
        key = LearnedKey(f"key_{number:032x}", f"k/{number}", b"")
        for signer in usable_by[number]:
            await store.keys.learn(signer, [key], [], (number, key.key_id), 0)
    asked = Accepted(id="kreq_6", external_id="k", path="p", body=b"", jws="", created_at_ms=1, digest=bytes(32))
    await store.keys.accept(asked, "k/6")

    def lacking(signer: int, limit: int = 10) -> list[str]:
        return [row.label for row in store.keys.to_activate(signer, 3, limit)]

    assert [lacking(signer) for signer in (1, 2, 3)] == [["k/4"], ["k/4", "k/2"], []]
    assert lacking(2, limit=1) == ["k/4"]
    await store.close()
