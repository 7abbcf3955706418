"""Coroutines without an event loop: a `Promise` is awaited, a `Task` is stepped whenever its promise resolves.

Everything in the enclave that waits (for a peer's round, the HSM, the gate, the store) is a straight-line coroutine
over these two. One thread, no clock of its own: deadlines are set by `Timers`, which the loop fires.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, TypeVar

from policies.errors import Bug, KeymootError

T = TypeVar("T")


class Promise(Generic[T]):
    """A value or error that arrives once. Later arrivals are ignored: the first one decides."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def resolve(self, value: T) -> None:
        """Deliver the value to whoever awaits."""
        if not self.done:
            self.done, self._value = True, value
            if self._callbacks:
                self._notify()

    def reject(self, error: BaseException) -> None:
        """Raise `error` at whoever awaits."""
        if not self.done:
            self.done, self._error = True, error
            self._notify()

    def settle(self, outcome: T | KeymootError) -> None:
        """`reject` if the outcome is one of our errors, `resolve` otherwise."""
        if isinstance(outcome, KeymootError):
            self.reject(outcome)
        else:
            self.resolve(outcome)

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call back when it arrives, or at once if it has."""
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def result(self) -> T:
        """The value; raises the error it was rejected with, or `Bug` if it has not arrived."""
        if not self.done:
            raise Bug("a promise was read before it arrived")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def _notify(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def __await__(self) -> Generator[Promise[T], None, T]:
        if not self.done:
            yield self
        return self.result()


class Task(Generic[T]):
    """A running coroutine. `on_end(task)` is called once, with `outcome` set to its value or its `KeymootError`.

    Any other exception is a defect of ours: it leaves through whoever resolved the promise and ends the process.
    """

    def __init__(self, coroutine: Coroutine[Any, None, T], on_end: Callable[[Task[T]], None]) -> None:
        self._coroutine = coroutine
        self._on_end = on_end
        self._awaiting: Promise[Any] | None = None
        self.outcome: T | KeymootError | None = None
        self.ended = False

    def start(self) -> None:
        """Run to the first promise that has not arrived."""
        self._step(None)

    def cancel(self, error: KeymootError) -> None:
        """Raise `error` where the coroutine waits."""
        if not self.ended:
            self._awaiting = None
            self._step(error)

    def _resume(self, promise: Promise[Any]) -> None:
        # A cancelled task no longer waits for what it waited for.
        if self._awaiting is promise:
            self._awaiting = None
            self._step(None)

    def _step(self, error: KeymootError | None) -> None:
        try:
            promise = self._coroutine.throw(error) if error is not None else self._coroutine.send(None)
        except StopIteration as stop:
            self._end(stop.value)
        except KeymootError as failure:
            self._end(failure)
        else:
            self._awaiting = promise
            promise.on_done(partial(self._resume, promise))

    def _end(self, outcome: T | KeymootError) -> None:
        if isinstance(outcome, Bug):
            raise outcome
        if isinstance(outcome, KeymootError):
            _forget_frames(outcome)
        self.ended, self.outcome = True, outcome
        self._on_end(self)


def _forget_frames(error: BaseException) -> None:
    """Errors may be kept for long, and with them the frames that they came through, which hold a ceremony's secrets."""
    chain = [error]
    while chain:
        one = chain.pop()
        chain += [linked for linked in (one.__context__, one.__cause__) if linked is not None]
        one.__traceback__ = one.__context__ = one.__cause__ = None


class Timers:
    """Deadlines on a monotonic clock in seconds, fired by the owner of the loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._live: set[int] = set()
        self._numbers = itertools.count()

    def after(self, delay_s: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back once after `delay_s`; returns what cancels it."""
        number = next(self._numbers)
        heapq.heappush(self._heap, (self._clock() + delay_s, number, callback))
        self._live.add(number)
        return lambda: self._live.discard(number)

    def sleep(self, delay_s: float) -> Promise[None]:
        """A promise that resolves after `delay_s`."""
        promise: Promise[None] = Promise()
        self.after(delay_s, lambda: promise.resolve(None))
        return promise

    def fire(self) -> None:
        """Run what is due."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            _, number, callback = heapq.heappop(self._heap)
            if number in self._live:
                self._live.discard(number)
                callback()

    def next_in_s(self, most_s: float) -> float:
        """Seconds until something is due, `most_s` where nothing is before."""
        while self._heap and self._heap[0][1] not in self._live:
            heapq.heappop(self._heap)
        return min(max(0.0, self._heap[0][0] - self._clock()), most_s) if self._heap else most_s
