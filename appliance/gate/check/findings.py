"""What a check found: one line for each thing that a handler must get right."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Outcome(StrEnum):
    """`warning`: safe, and yet something will not work, or may not. `skipped`: could not be tried."""

    PASSED = "passed"
    FAILED = "failed"
    WARNING = "warning"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True):
    """`check` names it, `what` the handler did; `means` and `remedy` are empty where it passed."""

    check: str
    outcome: Outcome
    what: str
    means: str = ""
    remedy: str = ""


def passed(check: str, what: str) -> Finding:
    """As it should be."""
    return Finding(check, Outcome.PASSED, what)


def failed(check: str, what: str, means: str, remedy: str) -> Finding:
    """Wrong: unsafe, or no signature will come of it."""
    return Finding(check, Outcome.FAILED, what, means, remedy)


def warning(check: str, what: str, means: str, remedy: str) -> Finding:
    """Safe, but worth a look."""
    return Finding(check, Outcome.WARNING, what, means, remedy)


def skipped(check: str, what: str, remedy: str = "") -> Finding:
    """Not tried, for the reason `what`."""
    return Finding(check, Outcome.SKIPPED, what, "", remedy)
