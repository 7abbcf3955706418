"""Logs of the processes without secrets: one JSON object a line on standard error."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict

from policies.lines import STANDARD_ERROR, LineSink

# A logger that was used once keeps what it was set up with, which is cheaper.
LOGGERS_FOR_GOOD = True


class LineLogger:
    """What structlog hands finished lines to. No method raises: a full disk costs lines, never the process."""

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        """Write one line."""
        self._sink.write(line)

    log = debug = info = warn = warning = error = err = critical = failure = fatal = exception = msg


# What every line of a task says, and of those that it starts.
_names: ContextVar[Mapping[str, object]] = ContextVar("names", default=MappingProxyType({}))


def name_task(**names: object) -> None:
    """From now on the lines of this task, and of those that it starts, say this."""
    _names.set({**_names.get(), **names})


@contextmanager
def named(**names: object) -> Iterator[None]:
    """As `name_task`, for the block."""
    token = _names.set({**_names.get(), **names})
    try:
        yield
    finally:
        _names.reset(token)


def with_names(_logger: object, _level: str, told: EventDict) -> EventDict:
    """A processor of structlog: what is told, and the names of the task that tells it."""
    return {**_names.get(), **told}


def task_name(name: str) -> object:
    """What `name_task` said; None where it said nothing of that name."""
    return _names.get().get(name)


def _telling(level: str) -> Callable[..., None]:
    def tell(self: structlog.BoundLoggerBase, event: str, **told: Any) -> None:
        line: Any = {**self._context, **told, "event": event}
        try:
            for processor in self._processors:
                line = processor(self._logger, level, line)
        except structlog.DropEvent:
            return
        self._logger.msg(line)

    return tell


class Lines(structlog.BoundLoggerBase):
    """structlog's bound logger with what is used of it: an event, and facts by name. `debug` says nothing."""

    info, warning, error = _telling("info"), _telling("warning"), _telling("error")

    def debug(self, event: str, **told: Any) -> None:
        """Nothing."""

    def exception(self, event: str, **told: Any) -> None:
        """As `error`, with the exception that is being handled."""
        self.error(event, **{"exc_info": True, **told})


class Rendering:
    """structlog's processors in one, and cheap: every request has three lines. `clock`: Unix seconds."""

    def __init__(self, process: str, clock: Callable[[], float]) -> None:
        self._process, self._clock = process, clock
        self._second, self._shown = -1, ""

    def __call__(self, logger: object, level: str, told: EventDict) -> str:
        """One line of JSON: what was told, and what is bound to the task that tells it."""
        told = with_names(logger, level, told)
        told["level"], told["timestamp"], told["process"] = level, self._time(), self._process
        if "exc_info" in told:
            told = structlog.processors.format_exc_info(logger, level, told)
        return _json(told)

    def _time(self) -> str:
        now_s = self._clock()
        second = int(now_s)
        if second != self._second:
            self._second, self._shown = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._shown}.{int((now_s - second) * 1e6):06d}Z"


_encode = msgspec.json.Encoder(order="sorted", enc_hook=repr).encode


def _json(line: object) -> str:
    """One line of JSON. What is no JSON of itself is shown by its repr."""
    try:
        return _encode(line).decode()
    except (UnicodeEncodeError, TypeError):  # a lone surrogate, as in the name of a file; a key that is no text
        return json.dumps(line, sort_keys=True, default=repr)


def configure_logging(process: str) -> None:
    """Set up structlog for this process; `process` stands in every line. Call it once, at the start."""

    def tell_lost(count: int) -> str:
        reason = f"{count} lines could not be written: see whether the log's disk was full"
        line = {"event": "log-lines-lost", "level": "warning", "process": process, "count": count, "reason": reason}
        return json.dumps(line, sort_keys=True)

    logger = LineLogger(LineSink(STANDARD_ERROR, tell_lost))
    structlog.configure(
        processors=[Rendering(process, time.time)],
        wrapper_class=Lines,
        logger_factory=lambda *_: logger,
        cache_logger_on_first_use=LOGGERS_FOR_GOOD,
    )
