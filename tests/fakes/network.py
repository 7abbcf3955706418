"""An in-memory network of protocol sessions: real rounds, real bodies, no channel. Tests tamper on the way."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from enclave.protocol.session import RoundMessage, Session
from enclave.tasks import Task
from policies.errors import KeymootError

Tamper = Callable[[int, int, int, bytes], bytes | None]


def seeded_random(seed: str) -> Callable[[int], bytes]:
    """Deterministic bytes for known-answer tests."""
    counter = 0

    def random(count: int) -> bytes:
        nonlocal counter
        counter += 1
        return hashlib.shake_256(f"{seed}/{counter}".encode()).digest(count)

    return random


class Network:
    """Runs one coroutine a member and delivers bodies in order; `tamper(sender, receiver, round, content)`."""

    def __init__(self, members: tuple[int, ...], context: bytes, rounds: tuple[type[RoundMessage], ...]) -> None:
        self.members = members
        self.queue: deque[tuple[int, int, int, bytes]] = deque()
        self.transcript = hashlib.sha256()
        self.sessions = {j: Session(context, j, members, rounds, self._transmit(j)) for j in members}

    def _transmit(self, sender: int) -> Callable[[int, tuple[int, ...], bool, bytes], None]:
        def transmit(round_number: int, receivers: tuple[int, ...], private: bool, content: bytes) -> None:
            for receiver in receivers:
                self.queue.append((sender, receiver, round_number, content))

        return transmit

    def run(
        self, start: Callable[[Session], Coroutine[Any, None, Any]], tamper: Tamper | None = None
    ) -> dict[int, Any]:
        """Outcome of every member: its result, the error it ended with, or None if it still waits."""
        tasks = {j: Task(start(session), lambda task: None) for j, session in self.sessions.items()}
        for task in tasks.values():
            task.start()
        while self.queue:
            sender, receiver, number, content = self.queue.popleft()
            self.transcript.update(bytes([sender, receiver, number]) + content)
            changed = tamper(sender, receiver, number, content) if tamper else content
            if changed is not None and not tasks[receiver].ended:
                self.sessions[receiver].receive(sender, number, changed)
        return {j: task.outcome for j, task in tasks.items()}


def results(outcomes: dict[int, Any]) -> dict[int, Any]:
    """The outcomes, all of them results. Fails the test otherwise."""
    for outcome in outcomes.values():
        assert outcome is not None
        assert not isinstance(outcome, KeymootError), outcome
    return outcomes
