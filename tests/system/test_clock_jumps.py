"""Clocks that jump under real processes (libfaketime), and memory that was put back (SIGUSR1)."""

from __future__ import annotations

import datetime
import json
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.api.client import ApiError, CertifiedKey, Failed
from appliance.checkup.host import check_signer
from appliance.localnet import LocalNet
from policies.requests import Hash

POOL = (60, 120, 60)
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
FAKED = ("enclave-1", "signer-1", "coordinator")
JUMPS_S = {"minutes forward": 600, "days forward": 259_200, "minutes back": -600, "days back": -259_200}

pytestmark = [
    pytest.mark.timeout(170),
    pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed: apt install faketime"),
]


class Clock:
    """The wall clock of one process, which reads the file whenever it asks for the time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0)

    def set(self, offset_s: int) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(f"{offset_s:+d}\n")
        new.rename(self._path)

    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


class Jumping(LocalNet):
    """A network in which some processes have clocks that a test can set."""

    clocks: dict[str, Clock]
    key: CertifiedKey

    def write(self) -> None:
        super().write()
        self.clocks = {name: Clock(self.root / f"{name}.time") for name in FAKED}
        for name, clock in self.clocks.items():
            process = self.processes[name]
            process.environment = {**process.environment, **clock.environment()}

    def dropped(self, index: int) -> list[str]:
        """Why an enclave has dropped its memory so far."""
        found = []
        for line in self.log(f"enclave-{index}").read_text().splitlines():
            if '"memory dropped"' in line:
                found.append(json.loads(line)["reason"])
        return found

    def sign(self, timeout_s: float = 60.0) -> None:
        with self.client() as client:
            client.sign(self.key.id, Hash("0x" + secrets.token_hex(32), secrets.token_hex(8)), timeout_s=timeout_s)

    def clock_ahead_s(self, index: int) -> int:
        """By how much a signer's clock is ahead, as the coordinator shows it."""
        with self.client() as client:
            condition = client.list_signers()[index - 1].condition
        return 0 if condition is None else condition.clock_ahead_s or 0

    def back(self) -> None:
        """Until the pools are filled again."""
        self.wait_for_pool(POOL[0])


@pytest.fixture(scope="module")
def net() -> Iterator[Jumping]:
    with Jumping(pool=POOL) as made:
        made.wait_for_pool(POOL[0])
        with made.client() as client:
            made.key = client.create_key("test/clock", "clock-key")
        yield made


@pytest.mark.parametrize("jump", JUMPS_S)
def test_a_jump_of_a_signers_clock_stops_nothing(net: Jumping, jump: str) -> None:
    """Its timers are monotonic, and it judges nothing. Operators are told: the host's clock is its enclave's."""
    net.clocks["signer-1"].set(JUMPS_S[jump])
    net.sign(timeout_s=10)
    net.wait_for(lambda: abs(net.clock_ahead_s(1) - JUMPS_S[jump]) <= 5, "the jump to be told")
    net.clocks["signer-1"].set(0)
    net.sign(timeout_s=10)
    net.wait_for(lambda: abs(net.clock_ahead_s(1)) <= 5, "the right clock to be told")


@pytest.mark.parametrize("jump", JUMPS_S)
def test_a_coordinator_with_a_wrong_clock_says_so_and_goes_on_once_it_is_right(net: Jumping, jump: str) -> None:
    net.clocks["coordinator"].set(JUMPS_S[jump])
    with pytest.raises(ApiError, match="check both clocks") as refused:
        net.sign()
    assert refused.value.status == 401
    net.clocks["coordinator"].set(0)
    net.sign(timeout_s=10)
    assert net.health() is not None
    assert net.dropped(1) == []


def test_memory_that_was_put_back_is_dropped_and_service_returns_by_itself(net: Jumping) -> None:
    process = net.processes["enclave-2"]
    pid = process.pid
    process.kill(signal.SIGUSR1)
    net.wait_for(lambda: bool(net.dropped(2)), "the enclave to drop its memory")
    assert net.dropped(2) == ["the machine says that its memory was copied or put back (SIGUSR1)"]
    net.sign()
    net.back()
    assert (process.pid, process.running) == (pid, True)
    assert len(net.dropped(2)) == 1


def test_an_enclave_whose_clock_jumps_forward_drops_its_memory_and_says_that_requests_are_old(net: Jumping) -> None:
    clock = net.clocks["enclave-1"]
    clock.set(600)
    net.wait_for(lambda: bool(net.dropped(1)), "the enclave to notice")
    assert net.dropped(1) == ["the clock was set forward by 600 s"]
    net.back()
    with pytest.raises(Failed, match=r"request/expired: .* check both clocks"):
        net.sign()
    # Its peers' clocks say so, too (SPEC 7.8).
    host, found = check_signer(net.plan.signer(1), datetime.datetime.now(datetime.UTC))
    assert host.status is not None
    assert [(round(one.seconds, -1), one.side) for one in host.status.clocks_off()] == [(600, "ahead")] * 2
    assert [one.what for one in found if "clock" in one.what] == [
        "this host's clock is 10 min ahead of that of signer-2"
    ]


def test_set_back_it_refuses_what_it_may_have_forgotten_and_a_restart_cures_it(net: Jumping) -> None:
    net.clocks["enclave-1"].set(0)
    net.wait_for(lambda: len(net.dropped(1)) >= 2, "the enclave to notice")
    assert net.dropped(1)[1:] == ["the clock was set back by 600 s"]
    log = net.log("enclave-1").read_text()
    assert "if it is right now and was wrong before, restart this enclave" in log
    net.back()
    with pytest.raises(Failed, match=r"request/boot: signed before .* its clock was set back"):
        net.sign()
    net.restart("enclave-1")
    net.back()
    net.sign()
    assert len(net.dropped(1)) == 2
