"""The HSM thread on a real SoftHSM: results, bounds, and an HSM that goes away and comes back."""

from __future__ import annotations

import select
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pkcs11 import Attribute, TokenFlag

from enclave.hsm import Hsm, HsmAway, HsmBusy, HsmThread, RecordContext, SealBroken, open_hsm, provision
from enclave.hsm.config import pin_mark
from enclave.hsm.errors import HsmMisconfigured, KeyMissing, PinRefused
from enclave.hsm.module import log_in
from enclave.hsm.thread import Backoff
from enclave.secret import Secret
from policies.errors import Bug
from tests.fakes.softhsm import SoftToken

CONTEXT = RecordContext("net", 1, "key", "key_" + "0" * 32, epoch=1, version=1)
QUICK = Backoff(first_s=0.01, most_s=0.05)
DEADLINE_S = 20.0


class Loop:
    """The main loop's part: waits on `fileno()`, drains, collects outcomes in order."""

    def __init__(self, thread: HsmThread) -> None:
        self.thread = thread
        self.outcomes: list[Any] = []

    def submit(self, job: Callable[[Hsm], object]) -> None:
        self.thread.submit(job, self.outcomes.append)

    def until(self, condition: Callable[[], bool]) -> None:
        """Drain until `condition()`; it can only become true after the descriptor was readable."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            readable, _, _ = select.select([self.thread], [], [], deadline - time.monotonic())
            assert readable, f"nothing happened in {DEADLINE_S} s, state {self.thread.state}"
            self.thread.drain()

    def call(self, job: Callable[[Hsm], object]) -> Any:
        before = len(self.outcomes)
        self.submit(job)
        self.until(lambda: len(self.outcomes) > before)
        return self.outcomes[-1]

    def until_state(self, state: str) -> str:
        self.until(lambda: self.thread.state[0] == state)
        return self.thread.state[1]


@pytest.fixture
def loop(token: SoftToken) -> Iterator[Loop]:
    provision(token.config)
    thread = HsmThread(lambda: open_hsm(token.config, "net", 1), backoff=QUICK, queue_limit=4)
    thread.wait_ready(DEADLINE_S)
    yield Loop(thread)
    thread.close()


class Gate:
    """A job that keeps the HSM thread busy until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, hsm: Hsm) -> str:
        self.entered.set()
        assert self.opened.wait(DEADLINE_S)
        return "gate"


def test_results_come_on_the_callers_thread_in_order(loop: Loop) -> None:
    seen: list[tuple[object, int]] = []
    for number in range(4):
        loop.thread.submit(lambda hsm, n=number: n, lambda got: seen.append((got, threading.get_ident())))
    loop.until(lambda: len(seen) == 4)
    assert seen == [(number, threading.get_ident()) for number in range(4)]


def test_jobs_run_on_one_other_thread(loop: Loop) -> None:
    idents = {loop.call(lambda hsm: threading.get_ident()) for _ in range(3)}
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_seal_and_unseal_through_the_thread(loop: Loop) -> None:
    sealed = loop.call(lambda hsm: hsm.seal(CONTEXT, b"share"))
    with loop.call(lambda hsm: hsm.unseal(CONTEXT, sealed)) as secret:
        assert secret.reveal() == b"share"


def test_typed_errors_pass_and_leave_the_hsm_ready(loop: Loop) -> None:
    sealed = loop.call(lambda hsm: hsm.seal(CONTEXT, b"share"))
    assert type(loop.call(lambda hsm: hsm.unseal(CONTEXT, sealed[:-1] + b"\0"))) is SealBroken
    assert loop.thread.state == ("ready", "")


def test_foreign_exception_becomes_a_bug_without_its_text(loop: Loop) -> None:
    def job(hsm: Hsm) -> None:
        raise ValueError("secret 4711")

    outcome = loop.call(job)
    assert type(outcome) is Bug
    assert "ValueError" in str(outcome)
    assert "test_hsm_thread.py" in str(outcome)
    assert "4711" not in str(outcome)
    assert outcome.__cause__ is None


def test_full_queue_refuses_and_frees_itself(loop: Loop) -> None:
    gate = Gate()
    for _ in range(4):
        loop.submit(gate)
    with pytest.raises(HsmBusy, match="4 HSM jobs are waiting"):
        loop.submit(gate)
    gate.opened.set()
    loop.until(lambda: len(loop.outcomes) == 4)
    assert loop.call(lambda hsm: "again") == "again"


def test_undrained_results_count_against_the_bound(loop: Loop) -> None:
    finished = threading.Semaphore(0)
    for _ in range(4):
        loop.submit(lambda hsm: finished.release())
    for _ in range(4):
        assert finished.acquire(timeout=DEADLINE_S)
    with pytest.raises(HsmBusy):
        loop.submit(lambda hsm: None)
    loop.until(lambda: len(loop.outcomes) == 4)
    loop.call(lambda hsm: None)


def test_failing_callback_loses_no_other_result(loop: Loop) -> None:
    gate = Gate()

    def failing(outcome: object) -> None:
        raise RuntimeError("callback")

    loop.thread.submit(gate, failing)
    loop.submit(lambda hsm: "second")
    gate.opened.set()
    with pytest.raises(RuntimeError, match="callback"):
        loop.until(lambda: False)
    loop.until(lambda: loop.outcomes == ["second"])


def test_away_and_back_without_a_person(loop: Loop, token: SoftToken) -> None:
    sealed = loop.call(lambda hsm: hsm.seal(CONTEXT, b"share"))
    gate = Gate()
    loop.submit(gate)
    assert gate.entered.wait(DEADLINE_S)
    loop.submit(lambda hsm: hsm.unseal(CONTEXT, sealed))
    loop.submit(lambda hsm: "waiting behind")
    token.take_away()
    gate.opened.set()
    loop.until(lambda: len(loop.outcomes) == 4)
    assert loop.outcomes[1] == "gate"
    assert [type(outcome) for outcome in loop.outcomes[2:]] == [HsmAway, HsmAway]
    state, reason = loop.thread.state
    assert state == "hsm-away"
    assert "check the HSM" in reason or "check the library" in reason
    with pytest.raises(HsmAway):
        loop.submit(lambda hsm: None)

    token.bring_back()
    assert loop.until_state("ready") == ""
    with loop.call(lambda hsm: hsm.unseal(CONTEXT, sealed)) as secret:
        assert secret.reveal() == b"share"


def test_idle_thread_notices_by_itself(token: SoftToken) -> None:
    provision(token.config)
    thread = HsmThread(lambda: open_hsm(token.config, "net", 1), backoff=QUICK, idle_check_s=0.01)
    loop = Loop(thread)
    thread.wait_ready(DEADLINE_S)
    for _ in range(3):
        token.take_away()
        assert loop.until_state("hsm-away") != ""
        token.bring_back()
        assert loop.until_state("ready") == ""
    thread.close()


def test_start_without_the_token_then_it_appears(token: SoftToken) -> None:
    provision(token.config)
    token.take_away()
    thread = HsmThread(lambda: open_hsm(token.config, "net", 1), backoff=QUICK)
    loop = Loop(thread)
    with pytest.raises(HsmAway):
        thread.wait_ready(0.2)
    token.bring_back()
    assert loop.until_state("ready") == ""
    thread.close()


def test_wait_ready_tells_what_no_retry_cures(token: SoftToken) -> None:
    thread = HsmThread(lambda: open_hsm(token.config, "net", 1), backoff=QUICK)
    with pytest.raises(KeyMissing, match="provision"):
        thread.wait_ready(DEADLINE_S)
    thread.close()


def test_a_refused_pin_is_not_tried_again_until_it_is_written_anew(token: SoftToken) -> None:
    provision(token.config)
    token.write_pin("pin-wrong")
    attempts: list[None] = []
    looked = threading.Semaphore(0)

    def open_counting() -> Hsm:
        attempts.append(None)
        return open_hsm(token.config, "net", 1)

    def mark() -> bytes | None:
        looked.release()
        return pin_mark(token.config.pin, b"salt" * 4)

    thread = HsmThread(open_counting, backoff=QUICK, pin_mark=mark)
    with pytest.raises(PinRefused):
        thread.wait_ready(DEADLINE_S)
    for _ in range(3):
        assert looked.acquire(timeout=DEADLINE_S)
    with pytest.raises(HsmAway, match="refused the PIN"):
        thread.submit(lambda hsm: None, lambda outcome: None)
    assert len(attempts) == 1
    # Also the same one, since a person wrote it: perhaps it is the token that was wrong.
    token.write_pin("pin-wrong")
    loop = Loop(thread)
    loop.until(lambda: len(attempts) == 2 and "refused the PIN" in thread.state[1])
    token.write_pin(token.user_pin)
    loop.until_state("ready")
    assert len(attempts) == 3
    thread.close()


def test_the_mark_of_a_pin_does_not_tell_it(token: SoftToken) -> None:
    one, two = (pin_mark(token.config.pin, salt * 16) for salt in (b"a", b"b"))
    assert one is not None
    assert two is not None
    assert one != two
    (token.directory / "pin").unlink()
    assert pin_mark(token.config.pin, b"a" * 16) is None


@pytest.mark.parametrize("flag", [TokenFlag.USER_PIN_FINAL_TRY, TokenFlag.USER_PIN_LOCKED])
def test_the_last_try_of_a_pin_is_a_persons(token: SoftToken, flag: TokenFlag) -> None:
    class Found:
        flags = TokenFlag.LOGIN_REQUIRED | flag

        def open(self, **_: object) -> None:
            raise AssertionError("a login was tried")

    class Library:
        def get_token(self, **_: object) -> Found:
            return Found()

    with pytest.raises(PinRefused, match=r"then write file:.* anew"):
        log_in(Library(), token.config, "pin")  # type: ignore[arg-type]


def test_a_session_that_is_closed_under_it_comes_back(loop: Loop) -> None:
    sealed = loop.call(lambda hsm: hsm.seal(CONTEXT, b"share"))
    loop.call(lambda hsm: hsm._module.session.close())
    assert type(loop.call(lambda hsm: hsm.unseal(CONTEXT, sealed))) is HsmAway
    loop.until_state("ready")
    with loop.call(lambda hsm: hsm.unseal(CONTEXT, sealed)) as secret:
        assert secret.reveal() == b"share"
    assert (loop.thread.opened, loop.thread.not_opened) == (2, 0)


def test_keys_that_are_removed_and_put_back(loop: Loop, token: SoftToken, tmp_path: Path) -> None:
    sealed = loop.call(lambda hsm: hsm.seal(CONTEXT, b"share"))
    saved, tokens = tmp_path / "saved", token.directory / "tokens"
    shutil.copytree(tokens, saved)

    def remove(hsm: Hsm) -> None:
        for found in list(hsm._module.session.get_objects({Attribute.LABEL: token.config.sealing_key_label})):
            found.destroy()

    loop.call(remove)
    assert type(loop.call(lambda hsm: hsm.unseal(CONTEXT, sealed))) is HsmAway
    loop.until(lambda: "provision" in loop.thread.state[1])
    assert loop.thread.state[0] == "hsm-away"
    shutil.rmtree(tokens)
    shutil.copytree(saved, tokens)
    loop.until_state("ready")
    with loop.call(lambda hsm: hsm.unseal(CONTEXT, sealed)) as secret:
        assert secret.reveal() == b"share"


def test_nobody_waits_for_a_call_that_does_not_return(token: SoftToken) -> None:
    provision(token.config)
    thread = HsmThread(lambda: open_hsm(token.config, "net", 1), backoff=QUICK, stall_s=0.05)
    thread.wait_ready(DEADLINE_S)
    loop, hanging, secret = Loop(thread), Gate(), Secret(b"x" * 32)

    def hang(hsm: Hsm) -> Secret:
        hanging(hsm)
        return secret

    loop.submit(hang)
    loop.submit(lambda hsm: "behind it")
    assert hanging.entered.wait(DEADLINE_S)
    deadline_s = time.monotonic() + DEADLINE_S
    while thread.state[0] == "ready":
        assert time.monotonic() < deadline_s
        thread.check_stalled()
    thread.drain()
    assert [type(outcome) for outcome in loop.outcomes] == [HsmAway, HsmAway]
    assert "has not returned in 0.05 s" in thread.state[1]
    assert thread.waiting == 0
    with pytest.raises(HsmAway, match="has not returned"):
        thread.submit(lambda hsm: None, loop.outcomes.append)
    hanging.opened.set()
    loop.until_state("ready")
    # What it brought is for nobody.
    assert not any(secret.reveal())
    assert loop.call(lambda hsm: "served") == "served"
    assert len(loop.outcomes) == 3
    thread.close()


def test_another_identity_is_not_let_back_in(token: SoftToken) -> None:
    provision(token.config)
    other = msgspec.structs.replace(token.config, identity_key_label="other")
    provision(other)
    configs = [token.config, other, other, token.config]
    reasons: list[str] = []

    def open_next() -> Hsm:
        reasons.append(thread_state())
        return open_hsm(configs.pop(0), "net", 1)

    thread: HsmThread | None = None

    def thread_state() -> str:
        return thread.state[1] if thread is not None else ""

    thread = HsmThread(open_next, backoff=QUICK)
    thread.wait_ready(DEADLINE_S)
    loop = Loop(thread)

    def away(hsm: Hsm) -> None:
        raise HsmAway("pulled out", "put it back")

    assert type(loop.call(away)) is HsmAway
    loop.until_state("ready")
    assert configs == []
    assert ["another identity key" in reason for reason in reasons] == [False, False, True, True]
    thread.close()


def test_backoff_is_bounded() -> None:
    backoff = Backoff(first_s=0.1, most_s=30.0)
    assert [backoff.pause_s(n) for n in (1, 2, 3, 9, 10, 10_000)] == [0.1, 0.2, 0.4, 25.6, 30.0, 30.0]


def test_close_wipes_undrained_secrets_and_lets_another_open(loop: Loop, token: SoftToken) -> None:
    made: list[Secret] = []
    finished = threading.Event()

    def job(hsm: Hsm) -> Secret:
        made.append(hsm.unseal(CONTEXT, hsm.seal(CONTEXT, b"share")))
        finished.set()
        return made[0]

    loop.submit(job)
    assert finished.wait(DEADLINE_S)
    loop.thread.close()
    assert len(made[0]) == 0
    assert loop.outcomes == []
    open_hsm(token.config, "net", 1).close()
    loop.thread.close()
    with pytest.raises(HsmAway, match="being closed"):
        loop.submit(lambda hsm: None)


def test_defect_while_opening_is_a_bug(token: SoftToken) -> None:
    def broken_open() -> Hsm:
        raise RuntimeError("secret 4711")

    thread = HsmThread(broken_open, backoff=QUICK)
    with pytest.raises(Bug, match="RuntimeError") as caught:
        thread.wait_ready(DEADLINE_S)
    assert "4711" not in str(caught.value)
    thread.close()


def test_misconfigured_is_not_away() -> None:
    assert not issubclass(HsmMisconfigured, HsmAway)
