"""Whose turn a network setup is (SPEC 1.7): one coordinator's at a time, so that two do not undo each other's work.

Every coordinator asks the signers for their setup nonces one after the other, lowest index first: whoever has the
first signer's turn has the others' too, and nobody holds one while waiting for another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from enclave.errors import Refused

LEASE_S = 30.0


@dataclass(frozen=True)
class _Turn:
    coordinator: str
    ceremony: bytes
    until_s: float


class SetupTurn:
    """At most one turn, for at most 30 s before its setup begins. `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._turn: _Turn | None = None

    def take(self, coordinator: str, ceremony: bytes) -> None:
        """It is this coordinator's turn now. Raises `Refused` while it is another's."""
        self.check(coordinator)
        self._turn = _Turn(coordinator, ceremony, self._clock() + LEASE_S)

    def check(self, coordinator: str) -> None:
        """Raises `Refused` while it is the turn of another coordinator."""
        turn = self._turn
        if turn is not None and turn.coordinator != coordinator and self._clock() < turn.until_s:
            raise Refused("busy", f"coordinator {turn.coordinator} is setting up the network")

    def release(self, coordinator: str, ceremony: bytes | None = None) -> None:
        """The turn of `coordinator` is over: that of one ceremony, or whichever it has."""
        turn = self._turn
        if turn is not None and turn.coordinator == coordinator and ceremony in (None, turn.ceremony):
            self._turn = None

    def clear(self) -> None:
        """Nobody can be reached any more."""
        self._turn = None
