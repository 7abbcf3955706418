"""The error roots of Keymoot. Every error a process raises on purpose derives from one of these.

`enclave.errors` adds the root that needs the protocol's words (`PeerFault`).
"""

from __future__ import annotations


class KeymootError(Exception):
    """Root of all errors raised on purpose. The message never holds a secret."""


class CallerError(KeymootError):
    """The caller (an operator, a client, a file) asked for something malformed or impossible."""


class Refused(KeymootError):
    """A decision, not a failure: the policy, the gate or the enclave's own rules said no."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(f"{rule}: {reason}")
        self.rule = rule
        self.reason = reason


class Unavailable(KeymootError):
    """Something this process needs is away; `remedy` says what an operator can do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} ({remedy})")
        self.what = what
        self.remedy = remedy


class Bug(KeymootError):
    """An invariant of ours does not hold. Terminal: the process that sees it must not go on."""
