"""The one thread that talks to the HSM. Jobs go in from the main loop, results come back to it.

The module is opened in the thread, so only after any fork. When a job shows that the HSM is away, waiting
jobs are refused, the module is torn down and opened again with back-off until it works, and service goes on
without a person. Everything here but `HsmThread`'s own thread is called from the main loop's thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from enclave.hsm.errors import HsmAway, HsmBusy, HsmMisconfigured, PinRefused
from enclave.hsm.hsm import Hsm
from enclave.hsm.module import AWAY_REMEDY
from enclave.secret import Secret
from policies.errors import Bug, KeymootError, Unavailable

T = TypeVar("T")
State = Literal["ready", "hsm-away"]

QUEUE_LIMIT = 256
IDLE_CHECK_S = 10.0
CLOSE_TIMEOUT_S = 5.0
# No single call takes as long, not even of an HSM across an ocean.
STALL_S = 10.0
PIN_POLL_S = 1.0


@dataclass(frozen=True)
class Backoff:
    """Pauses between attempts to open an HSM that is away: doubling from `first_s` to `most_s`."""

    first_s: float = 0.1
    most_s: float = 30.0

    def pause_s(self, failures: int) -> float:
        """The pause after so many failures in a row (1 or more)."""
        return min(self.first_s * 2.0 ** min(failures - 1, 32), self.most_s)


class _Job(msgspec.Struct, frozen=True):
    run: Callable[[Hsm], Any]
    done: Callable[[Any], None]


class HsmThread:
    """Owns the HSM: `submit` jobs, watch `fileno()` for reading, and call `drain()` when it is readable.

    `open_hsm` is called in the thread, each time the module is set up. At most `queue_limit` jobs are queued,
    running or undrained. An idle HSM is asked for its health every `idle_check_s` seconds.
    """

    def __init__(
        self,
        open_hsm: Callable[[], Hsm],
        *,
        queue_limit: int = QUEUE_LIMIT,
        backoff: Backoff | None = None,
        idle_check_s: float = IDLE_CHECK_S,
        stall_s: float = STALL_S,
        pin_mark: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        """`pin_mark()`: something that changes whenever somebody writes the PIN anew, None where it cannot be read. A
        refused PIN is not tried again until then."""
        self._open = open_hsm
        self._queue_limit = queue_limit
        self._backoff = backoff or Backoff()
        self._idle_check_s, self._stall_s, self._pin_mark = idle_check_s, stall_s, pin_mark
        # Wakes the thread in a third of the time that a condition takes. None: look whether to close.
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        # Entered by way of its lock, which takes two calls less.
        self._changed = threading.Condition(self._lock)
        # All of the following are changed under the lock only.
        self._finished: deque[tuple[_Job, object]] = deque()
        self._outstanding = 0
        self._closing = False
        # What runs, and since when; and what was answered while it still ran.
        self._running: tuple[_Job | None, float] | None = None
        self._given_up: tuple[_Job | None, float] | None = None
        self._away: KeymootError | None = HsmAway("the HSM is being opened", "wait a moment")
        self._tried = False
        # Touched by the HSM thread only.
        self._failures = 0
        # Written by the HSM thread, read by others: how often the module was opened, was not, and what jobs failed.
        self.opened = self.not_opened = self.failed_jobs = 0
        self._identity_point: bytes | None = None
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="hsm", daemon=True)
        self._thread.start()

    @property
    def state(self) -> tuple[State, str]:
        """`("ready", "")`, or `("hsm-away", reason)`; `fileno()` becomes readable when it changes."""
        away = self._away  # one reading needs no lock
        return ("ready", "") if away is None else ("hsm-away", str(away))

    def wait_ready(self, timeout_s: float) -> None:
        """Block until the HSM is open: for the start of a process, before its loop runs.

        Raises at once what no retry will cure (`HsmMisconfigured`, `Bug`), or `HsmAway` when time is up.
        """

        def settled() -> bool:
            return self._away is None or (self._tried and not isinstance(self._away, Unavailable))

        with self._lock:
            self._changed.wait_for(settled, timeout_s)
            if self._away is not None:
                raise self._away

    def submit(self, job: Callable[[Hsm], T], done: Callable[[T | KeymootError], None]) -> None:
        """Run `job(hsm)` on the HSM thread; `drain` later calls `done` with its result or its error.

        Raises `HsmBusy` when the queue is full and `HsmAway` while the HSM is: `done` is not called then.
        """
        with self._lock:
            if self._closing:
                raise HsmAway("the HSM is being closed", "wait for the restart")
            if self._away is not None:
                raise _as_away(self._away)
            if self._outstanding >= self._queue_limit:
                raise HsmBusy(self._queue_limit)
            self._outstanding += 1
            self._jobs.put(_Job(job, done))

    @property
    def waiting(self) -> int:
        """Jobs that are queued, running or undrained."""
        return self._outstanding

    def check_stalled(self) -> None:
        """Call about every second: where a call does not come back, the HSM is away, and nobody waits for it any more.

        The thread itself cannot be ended. It serves again when the call returns.
        """
        with self._lock:
            running = self._running
            if running is None or self._away is not None or time.monotonic() - running[1] < self._stall_s:
                return
            self._given_up = running
            self._away = error = HsmAway(f"a call of the HSM has not returned in {self._stall_s:g} s", AWAY_REMEDY)
            refused = [*([running[0]] if running[0] else []), *self._waiting_jobs()]
            self._finished.extend((job, error) for job in refused)
            self._signal()
            self._changed.notify_all()

    def fileno(self) -> int:
        """A descriptor that is readable when `drain` has something to do or `state` changed."""
        return self._event

    def drain(self) -> None:
        """Call `done` of all jobs that finished before this call, in this thread. Never blocks."""
        try:  # noqa: SIM105  at each turn of the loop: `suppress` costs more than the reading
            os.eventfd_read(self._event)
        except BlockingIOError:
            pass
        with self._lock:
            finished, self._finished = self._finished, deque()
            self._outstanding -= len(finished)
        try:
            while finished:
                job, outcome = finished.popleft()
                job.done(outcome)
        finally:
            if finished:
                self._put_back(finished)

    def _put_back(self, undelivered: deque[tuple[_Job, object]]) -> None:
        """A callback failed: the results behind it wait for the next `drain`."""
        with self._lock:
            self._finished.extendleft(reversed(undelivered))
            self._outstanding += len(undelivered)
            self._signal()

    def close(self) -> None:
        """Finish the running job, close the module, drop what waits. Undrained secrets are wiped."""
        with self._lock:
            self._closing = True
            self._waiting_jobs()
            self._jobs.put(None)
            self._changed.notify_all()
        self._thread.join(CLOSE_TIMEOUT_S)
        with self._lock:
            for _, outcome in self._finished:
                if isinstance(outcome, Secret):
                    outcome.wipe()
            self._finished.clear()
        # A call that hangs in the module keeps the thread alive: its descriptor stays with it.
        if not self._thread.is_alive() and self._event >= 0:
            os.close(self._event)
            self._event = -1

    # --- The HSM thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            mark = self._pin_mark()
            hsm = self._try_to_open()
            if hsm is None:
                if isinstance(self._away, Bug):
                    return  # Trying again repeats a defect of ours.
                if isinstance(self._away, PinRefused):
                    self._await_other_pin(mark)  # Trying the same one again could lock the token.
                else:
                    self._pause()
                continue
            try:
                self._serve(hsm)
            finally:
                hsm.close()
            if self._failures:
                self._pause()

    def _try_to_open(self) -> Hsm | None:
        hsm: Hsm | None = None
        error: KeymootError | None = None
        try:
            hsm = self._open()
            self._check_same_identity(hsm)
        except Exception as raised:  # noqa: BLE001  the thread's edge: a dead thread would look like a slow HSM
            error = _as_keymoot_error(raised, "opening the HSM")
        if error is not None and hsm is not None:
            hsm.close()
            hsm = None
        if error is not None:
            self._failures += 1
            self.not_opened += 1
        else:
            self.opened += 1
        self._set_away(error)
        return hsm

    def _check_same_identity(self, hsm: Hsm) -> None:
        if self._identity_point is None:
            self._identity_point = hsm.identity_point
        elif self._identity_point != hsm.identity_point:
            raise HsmMisconfigured("the HSM came back with another identity key: attach the signer's own token")

    def _serve(self, hsm: Hsm) -> None:
        """Run jobs until the HSM is away or the thread is closed."""
        while True:
            job = self._next_job()
            if self._closing:
                return
            self._running = running = (job, time.monotonic())
            outcome = _perform(hsm, job.run if job else Hsm.healthy)
            if isinstance(outcome, KeymootError):
                self.failed_jobs += 1
            if isinstance(outcome, HsmAway):
                self._failures += 1
                self._set_away(outcome, running)
                return
            self._failures = 0
            self._finish(running, outcome)

    def _next_job(self) -> _Job | None:
        """The next job, or None when it is time to check an idle HSM, or on closing."""
        try:
            return self._jobs.get(timeout=self._idle_check_s)
        except queue.Empty:
            return None

    def _waiting_jobs(self) -> list[_Job]:
        """Takes all out of the queue."""
        jobs: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    jobs.append(job)
        return jobs

    def _finish(self, running: tuple[_Job | None, float], outcome: object) -> None:
        job, _ = running
        with self._lock:
            self._running = None
            if self._given_up is running:
                self._back_from_stall(outcome)
            elif job is not None:
                self._finished.append((job, outcome))
        # Outside of the lock, which the woken main loop wants at once.
        self._signal()

    def _back_from_stall(self, outcome: object) -> None:
        """A call has returned for which nobody waits any more."""
        if isinstance(outcome, Secret):
            outcome.wipe()
        self._given_up = self._away = None
        self._changed.notify_all()

    def _set_away(self, error: KeymootError | None, running: tuple[_Job | None, float] | None = None) -> None:
        """Change the state. If the HSM is away, that is the outcome of what was `running` and of all that wait."""
        with self._lock:
            job = running[0] if running is not None and self._given_up is not running else None
            self._running = self._given_up = None
            self._away = error
            self._tried = True
            if error is not None:
                refused = [*([job] if job else []), *self._waiting_jobs()]
                self._finished.extend((waiting, error) for waiting in refused)
            self._signal()
            self._changed.notify_all()

    def _await_other_pin(self, refused: bytes | None) -> None:
        """Until the PIN was written anew after the one that was `refused`, or the thread is closed."""
        while not self._closing and self._pin_mark() in (refused, None):
            with self._lock:
                self._changed.wait_for(lambda: self._closing, PIN_POLL_S)

    def _pause(self) -> None:
        with self._lock:
            self._changed.wait_for(lambda: self._closing, self._backoff.pause_s(max(self._failures, 1)))

    def _signal(self) -> None:
        os.eventfd_write(self._event, 1)


def _perform(hsm: Hsm, job: Callable[[Hsm], object]) -> object:
    try:
        return job(hsm)
    except Exception as raised:  # noqa: BLE001  the thread's edge: the error goes to whoever submitted the job
        return _as_keymoot_error(raised, "an HSM job")


def _as_keymoot_error(raised: Exception, where: str) -> KeymootError:
    if isinstance(raised, KeymootError):
        return raised
    trace = raised.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown place"
    # The text of a foreign exception may quote what it was given: its type and place must do.
    return Bug(f"{where} raised {type(raised).__name__} at {place}")


def _as_away(error: KeymootError) -> HsmAway:
    return error if isinstance(error, HsmAway) else HsmAway(str(error), AWAY_REMEDY)
