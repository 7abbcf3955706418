"""The one writer of a process: collects what is submitted meanwhile into one transaction and one fsync.

Nothing is acknowledged before its commit has returned. A write that refuses (`KeymootError`) fails alone; a
database that fails fails the whole transaction, and after a failure that leaves the disk's state uncertain nothing is
written any more.

Statements run on the event loop: they change pages in memory, within some ten microseconds. What waits for the disk or
for a lock of the file is done by a thread. (One that ran the statements, too, would take the interpreter from the loop
and give it back several times for each of them: that cost more than all that SQLite does.)
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from appliance.durations import Durations
from appliance.store.database import BUSY_TIMEOUT_S, Database
from appliance.store.failures import DATABASE_ERRORS, QueueFull, StoreFailed, store_failure
from appliance.store.recovery import Recovery
from appliance.store.statements import driver
from policies.errors import Bug, KeymootError, Unavailable

MAX_QUEUED = 4096
# What one transaction takes the loop stays within some milliseconds.
MAX_BATCH = 256
INTEGRITY_ERRORS = (IntegrityError, sqlite3.IntegrityError)
BEGIN, COMMIT = "BEGIN IMMEDIATE", "COMMIT"

T = TypeVar("T")
Then = Callable[[StoreFailed | None], None]


class _Write:
    """One submission. `run` may be run again, in another transaction, when a neighbour refused."""

    __slots__ = ("error", "future", "outcome", "run")

    def __init__(self, run: Callable[[Connection], Any], future: asyncio.Future[Any]) -> None:
        self.run, self.future = run, future
        self.outcome: Any = None
        self.error: KeymootError | None = None


class GroupCommitWriter:
    """Runs submitted writes in submission order, for one event loop at a time."""

    def __init__(self, database: Database, max_queued: int = MAX_QUEUED, max_batch: int = MAX_BATCH) -> None:
        """Raises `StoreFailed`."""
        self._database, self._max_batch = database, max_batch
        self._queued: deque[_Write] = deque()
        self._max_queued = max_queued
        self._broken: KeymootError | None = None
        # The transaction that is under way: from `_step` to `_resolve`.
        self._in_hand: Sequence[_Write] = ()
        self._started_s = self._ended_s = 0.0
        # Of no request: a transaction is of many.
        self._context = Context()
        self._idle = asyncio.Event()
        self._idle.set()
        self.commit_seconds = Durations()
        self.recovery = Recovery(self._probe)
        self.transactions = 0
        self.writes = 0
        try:
            self._connection = database.writer.connect()
            self._sqlite = driver(self._connection)
            # Whoever has to wait for the lock does so on the thread.
            self._sqlite.execute("PRAGMA busy_timeout=0")
        except DATABASE_ERRORS as error:
            raise store_failure(database.path, error) from error
        self._waits: queue.SimpleQueue[tuple[str, asyncio.AbstractEventLoop, Then] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def submit(self, write: Callable[[Connection], T]) -> T:
        """What `write` returned, once it is committed and on disk.

        Raises what `write` raised of ours, `StoreFailed` where the database failed, `QueueFull` where the queue
        is full: nothing was written then.
        """
        return await self.begin(write)

    def begin(self, write: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Take `write` on, behind those before it. What `submit` returns or raises is the future's."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        refused = self._broken
        if refused is None and len(self._queued) >= self._max_queued:
            waiting = f"store {self._database.path}: {self._max_queued} writes are waiting"
            refused = QueueFull(waiting, "try again shortly")
        if refused is not None:
            if isinstance(refused, StoreFailed):
                self.recovery.note(refused)
            future.set_exception(refused)
            return future
        self._queued.append(_Write(write, future))
        if self._idle.is_set():
            self._idle.clear()
            # With all that is submitted before the loop comes to it.
            loop.call_soon(self._step, context=self._context)
        return future

    async def _probe(self) -> None:
        """Raises `StoreFailed` unless there is room and a small write reaches the disk."""
        self._database.require_room()
        await self.submit(lambda connection: connection.exec_driver_sql("PRAGMA user_version = 0").close())

    @property
    def waiting(self) -> int:
        """Writes that no transaction has taken yet."""
        return len(self._queued)

    async def close(self) -> None:
        """Commit what was submitted, then end the thread. Later submissions are refused."""
        self.recovery.close()
        if self._broken is None:
            self._broken = Unavailable("the store is closed", "the process is ending; restart it")
        await self._idle.wait()
        self._waits.put(None)
        await asyncio.to_thread(self._thread.join)
        self._connection.close()

    # --- a transaction, step by step ---

    def _step(self) -> None:
        """Begin the next one, if there is anything to write."""
        if not self._queued:
            self._idle.set()
            return
        self._in_hand = [self._queued.popleft() for _ in range(min(len(self._queued), self._max_batch))]
        if isinstance(self._broken, StoreFailed):
            self._resolve(self._broken)
            return
        self._started_s = time.perf_counter()
        try:
            self._sqlite.execute(BEGIN)
        except DATABASE_ERRORS as error:
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                self._wait_for(BEGIN, self._write)
            else:
                self._resolve(store_failure(self._database.path, error))
        else:
            self._write(None)

    def _write(self, failure: StoreFailed | None) -> None:
        """It has begun, unless that was a `failure`."""
        try:
            failure = failure or self._try()
        except BaseException:
            self._end()
            raise
        if failure is None:
            self._wait_for(COMMIT, self._resolve)
        else:
            self._resolve(failure)

    def _try(self) -> StoreFailed | None:
        """What the database said that failed; nothing of it is left then."""
        try:
            self._run_all()
        except DATABASE_ERRORS as error:
            self._roll_back()
            return store_failure(self._database.path, error)
        return None

    def _run_all(self) -> None:
        """What one of them refuses is none of the others' business."""
        try:
            for write in self._in_hand:
                write.outcome = write.run(self._connection)
        except (KeymootError, *INTEGRITY_ERRORS):
            self._roll_back()
            self._sqlite.execute(BEGIN)
            for write in self._in_hand:
                self._run_apart(write)

    def _run_apart(self, write: _Write) -> None:
        """So that it can fail alone."""
        try:
            with _savepoint(self._sqlite):
                write.outcome = write.run(self._connection)
        except KeymootError as error:
            write.error = error
        except INTEGRITY_ERRORS as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            write.error = Bug(f"store {self._database.path}: {cause}")

    def _resolve(self, failure: StoreFailed | None) -> None:
        """It is on disk, or nothing of it is, because of a `failure`. What waits begins the next one."""
        writes, self._in_hand = self._in_hand, ()
        if failure is None:
            self.commit_seconds.observe(self._ended_s - self._started_s)
            self.transactions += 1
            self.writes += len(writes)
        elif failure.lasting or self._connection.invalidated:
            self._broken = failure
        for write in writes:
            _settle(write.future, failure or write.error, write.outcome)
        if failure is not None or any(write.error is None for write in writes):
            self.recovery.note(failure)
        self._step()

    def _roll_back(self) -> None:
        # SQLite has rolled back by itself after some errors.
        if self._sqlite.in_transaction:
            self._sqlite.execute("ROLLBACK")

    def _end(self) -> None:
        """After an error that nobody foresaw: refuse from now on, and tell whoever still waits."""
        stopped = Unavailable("the store's writer has ended", "restart this process")
        if self._broken is None:
            self._broken = stopped
        waiting, self._in_hand = [*self._in_hand, *self._queued], ()
        self._queued.clear()
        for write in waiting:
            _settle(write.future, stopped, None)
        self._idle.set()
        self._roll_back()

    # --- what takes time ---

    def _wait_for(self, statement: str, then: Then) -> None:
        """Run it on the thread, `then` go on with what came of it."""
        self._waits.put((statement, asyncio.get_running_loop(), then))

    def _run(self) -> None:
        """The thread."""
        while (waiting := self._waits.get()) is not None:
            statement, loop, then = waiting
            failure, done = None, False
            try:
                self._execute(statement)
                done = True
            except DATABASE_ERRORS as error:
                failure, done = store_failure(self._database.path, error), True
            finally:
                self._ended_s = time.perf_counter()
                if not loop.is_closed():
                    loop.call_soon_threadsafe(*((then, failure) if done else (self._end,)))

    def _execute(self, statement: str) -> None:
        if statement == BEGIN:
            self._sqlite.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000:.0f}")
        try:
            self._sqlite.execute(statement)
        except BaseException:
            self._roll_back()
            raise
        finally:
            if statement == BEGIN:
                self._sqlite.execute("PRAGMA busy_timeout=0")


@contextmanager
def _savepoint(sqlite: sqlite3.Connection) -> Iterator[None]:
    """A part of a transaction that can fail alone."""
    sqlite.execute("SAVEPOINT write")
    try:
        yield
    except (KeymootError, *INTEGRITY_ERRORS):
        sqlite.execute("ROLLBACK TO write")
        raise
    finally:
        if sqlite.in_transaction:
            sqlite.execute("RELEASE write")


def _settle(future: asyncio.Future[Any], error: KeymootError | None, outcome: object) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(outcome)
