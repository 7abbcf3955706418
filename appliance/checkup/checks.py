"""A check of `keymoot doctor`: a look of bounded duration whose result is always told, also where nothing is wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue

import msgspec

from appliance.checkup.findings import Finding, problem
from policies.errors import KeymootError

TIMEOUT_S = 30.0


class Result(StrEnum):
    """How a check ended: `ok`, or as the findings of `status` are graded. `ok` and `note` are well."""

    OK = "ok"
    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"


class Checked(msgspec.Struct, frozen=True):
    """One result of the check `check` of `subject`: what is so, and the remedy, empty where all is well."""

    check: str
    subject: str
    result: Result
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Looked:
    """What a look has seen: the findings, or, where there are none, `good` in a sentence."""

    good: str
    findings: Sequence[Finding] = ()


@dataclass(frozen=True)
class Check:
    """`look` may raise `KeymootError` and `OSError`, and may take long: then the check is a problem."""

    name: str
    subject: str
    look: Callable[[], Looked]
    remedy: str = "Correct it, and run this again."


def run(checks: Iterable[Check], timeout_s: float = TIMEOUT_S) -> Iterator[Checked]:
    """Do one after the other, each for at most `timeout_s`."""
    for check in checks:
        looked = _look(check, timeout_s)
        for found in looked.findings:
            yield Checked(check.name, found.subject, Result(found.severity.value), found.what, found.remedy)
        if not looked.findings:
            yield Checked(check.name, check.subject, Result.OK, looked.good)


def need_attention(results: Iterable[Checked]) -> bool:
    """Whether somebody has to do something."""
    return any(one.result in (Result.PROBLEM, Result.WARNING) for one in results)


def _look(check: Check, timeout_s: float) -> Looked:
    """In a thread that is left to itself where it hangs, as on a network file system that is away."""
    answers: SimpleQueue[Looked | BaseException] = SimpleQueue()

    def look() -> None:
        try:
            answers.put(check.look())
        except BaseException as error:  # noqa: BLE001 - raised again below, where the check was asked for
            answers.put(error)

    threading.Thread(target=look, name=f"check-{check.name}", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except Empty:
        return _failed(check, f"the check did not end within {timeout_s:.0f} s")
    if isinstance(answer, KeymootError | OSError):
        return _failed(check, str(answer))
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _failed(check: Check, what: str) -> Looked:
    return Looked("", [problem(check.subject, what, check.remedy)])
