"""Logs of the processes without secrets: one JSON object a line on standard error."""

from __future__ import annotations

import json
import logging

import msgspec
import structlog

from policies.lines import STANDARD_ERROR, LineSink


class LineLogger:
    """What structlog hands finished lines to. No method raises: a full disk costs lines, never the process."""

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        """Write one line."""
        self._sink.write(line)

    log = debug = info = warn = warning = error = err = critical = failure = fatal = exception = msg


def _json(line: object, **_: object) -> str:
    """One line of JSON. What is no JSON of itself is shown by its repr."""
    try:
        return msgspec.json.encode(line, order="sorted", enc_hook=repr).decode()
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
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: logger,
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(process=process)
