"""The one writer of a process: collects what is submitted meanwhile into one transaction and one fsync.

Nothing is acknowledged before its commit has returned. A write that refuses (`KeymootError`) fails alone; a
database that fails fails the whole transaction, and after a failure that leaves the disk's state uncertain nothing is
written any more.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from appliance.durations import Durations
from appliance.store.database import Database
from appliance.store.failures import DATABASE_ERRORS, QueueFull, StoreFailed, store_failure
from appliance.store.recovery import Recovery
from appliance.store.statements import driver
from policies.errors import Bug, KeymootError, Unavailable

MAX_QUEUED = 4096
MAX_BATCH = 512
INTEGRITY_ERRORS = (IntegrityError, sqlite3.IntegrityError)

T = TypeVar("T")


@dataclass
class _Write:
    """One submission. `run` may be run again, in another transaction, when a neighbour refused."""

    run: Callable[[Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    outcome: Any = None
    error: KeymootError | None = None


class GroupCommitWriter:
    """Runs submitted writes in submission order on a thread of its own."""

    def __init__(self, database: Database, max_queued: int = MAX_QUEUED, max_batch: int = MAX_BATCH) -> None:
        self._database, self._max_batch = database, max_batch
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._max_queued = max_queued
        self._broken: KeymootError | None = None
        self._lock = threading.Lock()  # between the check of `_broken` and the end of the thread
        self._in_hand: list[_Write] = []
        self.commit_seconds = Durations()
        self.recovery = Recovery(self._probe)
        self.transactions = 0
        self.writes = 0
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
        with self._lock:
            refused = self._broken
            if refused is None and self._queue.qsize() >= self._max_queued:
                waiting = f"store {self._database.path}: {self._max_queued} writes are waiting"
                refused = QueueFull(waiting, "try again shortly")
            if refused is None:
                self._queue.put(_Write(write, loop, future))
        if refused is not None:
            if isinstance(refused, StoreFailed):
                self.recovery.note(refused)
            future.set_exception(refused)
        return future

    async def _probe(self) -> None:
        """Raises `StoreFailed` unless there is room and a small write reaches the disk."""
        self._database.require_room()
        await self.submit(lambda connection: connection.exec_driver_sql("PRAGMA user_version = 0").close())

    @property
    def waiting(self) -> int:
        """Writes that no transaction has taken yet."""
        return self._queue.qsize()

    async def close(self) -> None:
        """Commit what was submitted, then end the thread. Later submissions are refused."""
        self.recovery.close()
        with self._lock:
            if self._broken is None:
                self._broken = Unavailable("the store is closed", "the process is ending; restart it")
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    # --- on the writer's thread ---

    def _run(self) -> None:
        try:
            with self._database.writer.connect() as connection:
                while self._step(connection):
                    pass
        finally:
            self._end()

    def _step(self, connection: Connection) -> bool:
        batch, more = self._collect()
        self._in_hand = batch
        if batch:
            broken = self._broken if isinstance(self._broken, StoreFailed) else None
            if broken is not None:
                _fail_all(batch, broken)
            else:
                self._commit(connection, batch)
            self._deliver(batch)
        self._in_hand = []
        return more

    def _collect(self) -> tuple[list[_Write], bool]:
        batch: list[_Write] = []
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if len(batch) >= self._max_batch:
                return batch, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _commit(self, connection: Connection, batch: Sequence[_Write]) -> None:
        started_s = time.perf_counter()
        try:
            if not self._commit_together(connection, batch):
                self._commit_apart(connection, batch)
        except DATABASE_ERRORS as error:
            failure = store_failure(self._database.path, error)
            _fail_all(batch, failure)
            if failure.lasting or connection.invalidated:
                with self._lock:
                    self._broken = failure
        else:
            self.commit_seconds.observe(time.perf_counter() - started_s)
            self.transactions += 1
            self.writes += len(batch)

    def _commit_together(self, connection: Connection, batch: Sequence[_Write]) -> bool:
        """All in one transaction; False, and nothing written, where one of them refused."""
        try:
            with _transaction(connection):
                for write in batch:
                    write.outcome = write.run(connection)
        except (KeymootError, *INTEGRITY_ERRORS):
            return False
        return True

    def _commit_apart(self, connection: Connection, batch: Sequence[_Write]) -> None:
        """One transaction again, in which each write can fail alone."""
        with _transaction(connection):
            for write in batch:
                try:
                    with _savepoint(connection):
                        write.outcome = write.run(connection)
                except KeymootError as error:
                    write.error = error
                except INTEGRITY_ERRORS as error:
                    cause = error.orig if isinstance(error, DBAPIError) else error
                    write.error = Bug(f"store {self._database.path}: {cause}")

    def _end(self) -> None:
        """Whatever ended the thread: refuse from now on, and tell whoever still waits."""
        stopped = Unavailable("the store's writer has ended", "restart this process")
        with self._lock:
            if self._broken is None:
                self._broken = stopped
            waiting = self._in_hand
            while not self._queue.empty():
                item = self._queue.get_nowait()
                if item is not None:
                    waiting.append(item)
        _fail_all(waiting, stopped)
        self._deliver(waiting)

    def _deliver(self, batch: Sequence[_Write]) -> None:
        """Resolve the futures: one wake-up for each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
        for write in batch:
            by_loop.setdefault(write.loop, []).append(write)
        for loop, writes in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._resolve, writes)

    # --- on the event loop ---

    def _resolve(self, writes: Sequence[_Write]) -> None:
        failure, committed = None, False
        for write in writes:
            if isinstance(write.error, StoreFailed):
                failure = write.error
            committed = committed or write.error is None
            if write.future.done():
                continue
            if write.error is not None:
                write.future.set_exception(write.error)
            else:
                write.future.set_result(write.outcome)
        if failure is not None or committed:
            self.recovery.note(failure)


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """One transaction, which has the write lock from its begin on."""
    beneath = driver(connection)
    beneath.execute("BEGIN IMMEDIATE")
    try:
        yield
        beneath.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors.
        if beneath.in_transaction:
            beneath.execute("ROLLBACK")
        raise


@contextmanager
def _savepoint(connection: Connection) -> Iterator[None]:
    """A part of a transaction that can fail alone."""
    beneath = driver(connection)
    beneath.execute("SAVEPOINT write")
    try:
        yield
    except (KeymootError, *INTEGRITY_ERRORS):
        beneath.execute("ROLLBACK TO write")
        raise
    finally:
        if beneath.in_transaction:
            beneath.execute("RELEASE write")


def _fail_all(batch: Sequence[_Write], error: KeymootError) -> None:
    for write in batch:
        write.error = error
