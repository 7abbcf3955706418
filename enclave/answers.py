"""SPEC 4.10: what was answered under a request's name, so that a client that asks again elsewhere gets one result.

A name stands for one client's external id. Under it there is one body, at most one outstanding authorization, and the
newest answer, which the signer's store keeps. A name is remembered here as long as one of its requests is.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from enclave.errors import KeymootError, Refused
from enclave.wire import Answer


class Claimant(Protocol):
    """A request of some name."""

    digest: bytes
    answering: bool

    def withdraw(self) -> None:
        """What was authorised and not used can't be used any more."""


class AlreadyAnswered(KeymootError):
    """Something was answered under the request's name, and the order does not say that it came to nothing."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("this request was answered before")
        self.answer = answer


class _Name(msgspec.Struct):
    body: bytes
    claimants: dict[bytes, Claimant] = {}  # of its own: the library copies it
    answer: Answer | None = None

    def check_idle(self) -> None:
        for claimant in self.claimants.values():
            if claimant.answering:
                raise Refused("busy", "this request is being answered")


class Answers:
    """The names of all remembered requests."""

    def __init__(self) -> None:
        self._names: dict[bytes, _Name] = {}

    def claim(self, claimant: Claimant, name: bytes, body: bytes, stored: Answer | None) -> None:
        """`claimant` asks for `body` under `name`. `stored`: what the signer's store has under the name, or says so.

        Raises `Refused` where the name stands for another body.
        """
        answer = stored if stored is not None and stored.kept.name == name else None
        known = self._names.get(name) or _Name(body if answer is None else answer.kept.body)
        if known.body != body or (answer is not None and answer.kept.body != body):
            raise Refused("request/external-id", "this externalId stands for another request of this client")
        known.answer = known.answer or answer
        known.claimants[claimant.digest] = claimant
        self._names[name] = known

    def check(self, name: bytes, after: bytes | None) -> None:
        """Raises `AlreadyAnswered`, unless `after` is the newest answer's ceremony; `Refused` while one is made."""
        known = self._names.get(name)
        if known is None:
            return
        known.check_idle()
        if known.answer is not None and known.answer.report.ceremony != after:
            raise AlreadyAnswered(known.answer)

    def newest(self, name: bytes) -> Answer | None:
        """The newest answer under `name` that is known here."""
        known = self._names.get(name)
        return known.answer if known is not None else None

    def keep(self, answer: Answer) -> None:
        """The newest answer under its name."""
        known = self._names.get(answer.kept.name)
        if known is not None:
            known.answer = answer

    def withdraw(self, name: bytes, but: bytes = b"") -> None:
        """Nothing that was authorised under `name` can be used any more; `but` names a request that is spared."""
        known = self._names.get(name)
        for digest, claimant in known.claimants.items() if known is not None else ():
            if digest != but:
                claimant.withdraw()

    def check_idle(self, name: bytes) -> None:
        """Raises `Refused` while a share is computed or a key made under `name`: what comes of it is not known yet."""
        known = self._names.get(name)
        if known is not None:
            known.check_idle()

    def forget(self, name: bytes, digest: bytes) -> None:
        """A request is not remembered any more."""
        known = self._names.get(name)
        if known is not None:
            known.claimants.pop(digest, None)
            if not known.claimants:
                del self._names[name]
