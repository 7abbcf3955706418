"""The group-commit writer: batches, order, bounds, and nothing acknowledged that is not committed."""

from __future__ import annotations

import asyncio
import pathlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import Connection

from appliance.store.database import Database
from appliance.store.failures import StoreFailed
from appliance.store.writer import GroupCommitWriter
from policies.errors import Bug, CallerError, Unavailable


@pytest.fixture
def database(tmp_path: pathlib.Path) -> Database:
    made = Database.open(tmp_path / "x.db", "signer")
    with made.writer.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (i INTEGER PRIMARY KEY, b BLOB)")
    return made


@pytest.fixture
async def writer(database: Database) -> AsyncIterator[GroupCommitWriter]:
    made = GroupCommitWriter(database, max_queued=64)
    yield made
    await made.close()
    database.close()


def put(i: int, blob: bytes = b"") -> Callable[[Connection], int]:
    def write(connection: Connection) -> int:
        connection.exec_driver_sql("INSERT INTO t VALUES (?, ?)", (i, blob))
        return i

    return write


def stored(database: Database) -> list[int]:
    return [row[0] for row in database.reader.exec_driver_sql("SELECT i FROM t ORDER BY i")]


class Barrier:
    """Holds what the writer's thread is to do until `release`: from the next commit on."""

    def __init__(self, writer: GroupCommitWriter) -> None:
        self.entered, self._released = threading.Event(), threading.Event()
        self._execute = writer._execute
        writer._execute = self._held  # type: ignore[method-assign]

    def _held(self, statement: str) -> None:
        self.entered.set()
        assert self._released.wait(10)
        self._execute(statement)

    def release(self) -> None:
        self._released.set()


async def held(writer: GroupCommitWriter) -> tuple[Barrier, asyncio.Task[None]]:
    barrier = Barrier(writer)
    task = asyncio.create_task(writer.submit(lambda _: None))
    await asyncio.to_thread(barrier.entered.wait, 10)
    return barrier, task


async def test_what_is_submitted_meanwhile_goes_into_one_transaction(
    writer: GroupCommitWriter, database: Database
) -> None:
    barrier, first = await held(writer)
    writes = [asyncio.create_task(writer.submit(put(i))) for i in range(40)]
    await asyncio.sleep(0)
    assert stored(database) == []
    barrier.release()
    await first
    assert await asyncio.gather(*writes) == list(range(40))
    assert stored(database) == list(range(40))
    assert (writer.transactions, writer.writes) == (2, 41)


async def test_nothing_is_acknowledged_before_the_commit(writer: GroupCommitWriter, database: Database) -> None:
    barrier = Barrier(writer)
    task = asyncio.create_task(writer.submit(put(1)))
    await asyncio.to_thread(barrier.entered.wait, 10)
    assert stored(database) == []
    assert not task.done()
    barrier.release()
    await task
    assert stored(database) == [1]


async def test_a_full_queue_refuses_and_what_was_taken_is_still_written(
    writer: GroupCommitWriter, database: Database
) -> None:
    barrier, first = await held(writer)
    writes = [asyncio.create_task(writer.submit(put(i))) for i in range(64)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="64 writes are waiting"):
        await writer.submit(put(64))
    barrier.release()
    await asyncio.gather(first, *writes)
    assert stored(database) == list(range(64))


async def test_a_refusing_write_fails_alone(writer: GroupCommitWriter, database: Database) -> None:
    def refuse(connection: Connection) -> None:
        put(99)(connection)
        raise CallerError("no")

    barrier, first = await held(writer)
    tasks = [asyncio.create_task(writer.submit(write)) for write in (put(1), refuse, put(2), put(2))]
    await asyncio.sleep(0)
    barrier.release()
    await first
    one, refused, two, duplicate = await asyncio.gather(*tasks, return_exceptions=True)
    assert (one, two) == (1, 2)
    assert isinstance(refused, CallerError)
    assert isinstance(duplicate, Bug)
    assert stored(database) == [1, 2]


async def test_a_full_disk_is_unavailable_and_work_goes_on_when_there_is_room(
    writer: GroupCommitWriter, database: Database
) -> None:
    def limit(pages: int) -> Callable[[Connection], None]:
        return lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={pages}").close()

    await writer.submit(limit(1))
    with pytest.raises(StoreFailed, match="the disk is full") as caught:
        await asyncio.gather(*(writer.submit(put(i, bytes(100_000))) for i in range(3)))
    assert not caught.value.lasting
    assert stored(database) == []
    await writer.submit(limit(1_000_000))
    assert await writer.submit(put(1)) == 1
    assert stored(database) == [1]


async def test_a_read_only_database_is_unavailable(writer: GroupCommitWriter) -> None:
    await writer.submit(lambda connection: connection.exec_driver_sql("PRAGMA query_only=1").close())
    with pytest.raises(StoreFailed, match="read-only"):
        await writer.submit(put(1))


async def test_after_an_unforeseen_error_nothing_hangs_and_nothing_is_written(
    database: Database,
) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    writer = GroupCommitWriter(database)

    def break_it(connection: Connection) -> None:
        raise ZeroDivisionError

    barrier, first = await held(writer)
    tasks = [asyncio.create_task(writer.submit(write)) for write in (put(1), break_it, put(2))]
    await asyncio.sleep(0)
    barrier.release()
    await first
    for task in tasks:
        with pytest.raises(Unavailable, match="writer has ended"):
            await asyncio.wait_for(task, 10)
    with pytest.raises(Unavailable, match="writer has ended"):
        await writer.submit(put(3))
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert stored(database) == []
    await writer.close()
    database.close()


class CannotRollBack:
    """A connection to a database that fails, and cannot undo it either."""

    in_transaction = True

    def execute(self, statement: str) -> None:
        if statement == "ROLLBACK":
            raise sqlite3.OperationalError("disk I/O error")


async def test_where_nothing_can_be_rolled_back_nothing_hangs_and_nothing_more_is_written(
    writer: GroupCommitWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    monkeypatch.setattr(writer, "_sqlite", CannotRollBack())

    def fail(_: Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    for task in [asyncio.create_task(writer.submit(write)) for write in (put(1), fail)]:
        with pytest.raises(Unavailable, match="writer has ended"):
            await asyncio.wait_for(task, 10)
    with pytest.raises(Unavailable, match="writer has ended"):
        await writer.submit(put(3))
    assert told == ["disk I/O error"]


async def test_after_an_unforeseen_error_of_the_thread_nothing_hangs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    writer = GroupCommitWriter(database)

    def break_it(statement: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(writer, "_execute", break_it)
    for task in [asyncio.create_task(writer.submit(put(i))) for i in range(2)]:
        with pytest.raises(Unavailable, match="writer has ended"):
            await asyncio.wait_for(task, 10)
    with pytest.raises(Unavailable, match="writer has ended"):
        await writer.submit(put(3))
    assert stored(database) == []
    await writer.close()
    database.close()


async def test_a_lock_of_another_process_is_waited_for_beside_the_loop(
    writer: GroupCommitWriter, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waited_for = threading.Event()
    execute = writer._execute

    def seen(statement: str) -> None:
        waited_for.set()
        execute(statement)

    monkeypatch.setattr(writer, "_execute", seen)
    writes = [asyncio.create_task(writer.submit(put(i))) for i in range(3)]
    # The loop goes on, or nobody would let the lock go.
    await asyncio.to_thread(waited_for.wait, 10)
    assert not any(write.done() for write in writes)
    other.execute("ROLLBACK")
    assert await asyncio.gather(*writes) == [0, 1, 2]
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("appliance.store.writer.BUSY_TIMEOUT_S", 0.1)
    with pytest.raises(StoreFailed, match="another process holds the file") as caught:
        await writer.submit(put(3))
    assert not caught.value.lasting
    other.close()
    assert await writer.submit(put(4)) == 4
    assert stored(database) == [0, 1, 2, 4]


async def test_closing_commits_what_was_submitted_and_refuses_the_rest(database: Database) -> None:
    writer = GroupCommitWriter(database)
    tasks = [asyncio.create_task(writer.submit(put(i))) for i in range(10)]
    await asyncio.sleep(0)
    await writer.close()
    assert await asyncio.gather(*tasks) == list(range(10))
    with pytest.raises(Unavailable, match="closed"):
        await writer.submit(put(10))
    assert stored(database) == list(range(10))
    database.close()
