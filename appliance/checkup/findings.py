"""A finding: what is wrong, or worth knowing, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """`problem`: something does not work. `warning`: it will not, or may not. `note`: as configured, and worth knowing;
    a note alone is well."""

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"


class Finding(msgspec.Struct, frozen=True):
    """About `subject` (a signer's name, `pool 1-2-3`, a file): `what` is so, and the `remedy` in a sentence."""

    severity: Severity
    subject: str
    what: str
    remedy: str


def problem(subject: str, what: str, remedy: str) -> Finding:
    """Something that does not work."""
    return Finding(Severity.PROBLEM, subject, what, remedy)


def warning(subject: str, what: str, remedy: str) -> Finding:
    """Something that soon will not work, or may not."""
    return Finding(Severity.WARNING, subject, what, remedy)


def note(subject: str, what: str, remedy: str) -> Finding:
    """Something that is as configured."""
    return Finding(Severity.NOTE, subject, what, remedy)


def need_attention(findings: Iterable[Finding]) -> bool:
    """Whether somebody has to do something."""
    return any(finding.severity is not Severity.NOTE for finding in findings)


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Problems first, else in the order given."""
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def sentence(text: str) -> str:
    """A remedy that an error names, as findings have it."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def weak_gate(name: str) -> Finding:
    """The signer of this name has a gate in mode `status`."""
    return note(
        name,
        "believes its gate's HTTP status, unsigned: its signer process alone can approve",
        "Gate mode `signed` does not have that weakness.",
    )
