"""What systemd is told, over the real kind of socket."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

import appliance.systemd
import enclave.notify
from appliance.signer.status import CoordinatorStatus, SignerStatus
from appliance.signer.status import sentence as signer_sentence
from enclave.wire import Status
from policies.notify import MAX_SENTENCE_CHARACTERS, Notifier, notifier


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def received(sock: socket.socket) -> list[str]:
    sock.setblocking(False)
    said = []
    try:
        while True:
            said.append(sock.recv(4096).decode())
    except BlockingIOError:
        return said


def recording() -> tuple[list[bytes], Notifier, list[float]]:
    said: list[bytes] = []
    now_s = [100.0]
    return said, Notifier(said.append, 20.0, lambda: now_s[0]), now_s


def test_signs_of_life_are_sent_four_times_in_the_watchdogs_time():
    said, told, now_s = recording()
    for _ in range(61):
        told.alive()
        now_s[0] += 1.0
    assert said == [b"WATCHDOG=1"] * 13


def test_a_sentence_is_sent_when_it_changes_and_is_one_line():
    said, told, _ = recording()
    for sentence in ("a", "a", "b\nREADY=1", "x" * 9999):
        told.tell(sentence)
    assert said == [b"STATUS=a", b"STATUS=b READY=1", b"STATUS=" + b"x" * MAX_SENTENCE_CHARACTERS]


def test_without_systemd_nothing_is_said():
    def connect(_: str):
        raise AssertionError

    told = notifier(connect, lambda: 0.0, {"WATCHDOG_USEC": "1000000"})
    told.ready(), told.alive(), told.tell("x"), told.stopping()
    assert not told.active


def test_another_process_watchdog_is_not_ours():
    said: list[bytes] = []
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid() + 1)}
    told = notifier(lambda _: said.append, lambda: 0.0, environment)
    told.alive()
    told.ready()
    assert said == [b"READY=1"]


@pytest.mark.parametrize("module", [enclave.notify, appliance.systemd])
def test_a_real_socket_is_told_and_a_vanished_one_ends_nothing(module, listener, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", listener.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    told = module.systemd()
    told.ready(), told.alive(), told.tell("Ready; 5 presignatures"), told.stopping()
    assert received(listener) == ["READY=1", "WATCHDOG=1", "STATUS=Ready; 5 presignatures", "STOPPING=1"]
    listener.close()
    told.stopping()


@pytest.mark.parametrize("module", [enclave.notify, appliance.systemd])
def test_an_abstract_socket_is_told(module, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0keymoot-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@keymoot-test-{os.getpid()}")
        module.systemd().ready()
        assert received(sock) == ["READY=1"]


async def test_an_event_loop_gives_signs_of_life_while_its_sentence_is_awaited():
    said: list[bytes] = []
    told = Notifier(lambda data: (said.append(data), alive.set()), 0.001, asyncio.get_running_loop().time)
    alive = asyncio.Event()

    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    task = asyncio.create_task(appliance.systemd.report(told, never))
    await asyncio.wait_for(alive.wait(), 10)
    task.cancel()
    assert said[0] == b"WATCHDOG=1"


def status(state: str, reason: str = "") -> Status:
    return Status(state, reason, {}, {"presignatures": 7}, {})


def test_the_enclaves_sentences():
    assert enclave.notify.sentence(status("ready"), True) == "Ready; 7 presignatures"
    assert enclave.notify.sentence(status("waiting", "no PRSS seeds yet"), True) == (
        "Waiting: no PRSS seeds yet; 7 presignatures"
    )
    assert enclave.notify.sentence(status("ready"), False) == (
        "Waiting for the signer process to connect; 7 presignatures"
    )
    assert enclave.notify.sentence(status("hsm-away", "there is no token"), False) == "HSM away: there is no token"


@pytest.mark.parametrize(
    ("enclave_state", "reason", "up", "gate_reason", "expected"),
    [
        ("ready", "", True, "", "Ready; 7 presignatures"),
        ("away", "start it", False, None, "No enclave: start it; not connected to c: refused"),
        ("hsm-away", "no token", True, None, "HSM away: no token"),
        ("waiting", "no seeds", True, None, "Enclave waiting: no seeds"),
        ("ready", "", True, "timeout", "Ready; 7 presignatures; the gate does not answer: timeout"),
    ],
)
def test_the_signers_sentences(enclave_state, reason, up, gate_reason, expected):
    coordinator = CoordinatorStatus("c", "https://c", up, "refused")
    told = SignerStatus("n", "1", enclave_state, reason, True, gate_reason, (coordinator,), {"presignatures": 7}, {})
    assert signer_sentence(told) == expected
