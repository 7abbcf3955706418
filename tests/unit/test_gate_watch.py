"""The sealed file of the gate's secrets is taken up when it changes, also where the HSM is busy at that moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclave.errors import CallerError, KeymootError, Unavailable
from enclave.gate_keys import GateKeys
from enclave.gate_watch import GateSecretsWatch
from enclave.log import Log
from enclave.tasks import Promise

KEYS = GateKeys((), ())


class Stage:
    """A watch over a file; `answers`: what unsealing gives, in turn."""

    def __init__(self, path: Path) -> None:
        self.path, self.answers, self.lines = path, list[GateKeys | KeymootError](), list[str]()
        path.write_bytes(b"sealed")
        self.watch = GateSecretsWatch(path, self.unseal, Log("enclave", write=self.lines.append))

    def unseal(self) -> Promise[GateKeys | None]:
        promise: Promise[GateKeys | None] = Promise()
        answer = self.answers.pop(0)
        if isinstance(answer, KeymootError):
            promise.reject(answer)
        else:
            promise.resolve(answer)
        return promise

    def look(self, times: int = 1) -> list[bool]:
        """For each line that was logged meanwhile, whether it says that the secrets were taken up."""
        self.lines.clear()
        for _ in range(times):
            self.watch.look()
        return ["gate secrets reloaded" in line for line in self.lines]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "gate-secrets.sealed")


def test_a_change_is_taken_up_once(stage: Stage) -> None:
    assert stage.look(3) == []
    stage.path.write_bytes(b"sealed anew")
    stage.answers = [KEYS]
    assert stage.look(3) == [True]


def test_while_the_hsm_is_busy_it_is_tried_again_and_told_once(stage: Stage) -> None:
    stage.path.write_bytes(b"sealed anew")
    stage.answers = [Unavailable("too many jobs wait for the HSM", "wait")] * 3 + [KEYS]
    assert stage.look(3) == [False]
    assert stage.look(3) == [True]


def test_what_cannot_be_used_is_not_tried_again_before_it_changes(stage: Stage) -> None:
    stage.path.write_bytes(b"garbage")
    stage.answers = [CallerError("not sealed for this signer"), KEYS]
    assert stage.look(3) == [False]
    stage.path.write_bytes(b"sealed anew")
    assert stage.look(3) == [True]


def test_a_file_that_is_away_for_a_moment_changes_nothing(stage: Stage) -> None:
    stage.path.unlink()
    assert stage.look(3) == []
