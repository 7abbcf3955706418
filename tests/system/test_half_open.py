"""Connections that hang without closing, between real processes: noticed within a bound, made anew, nothing leaks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from appliance import relay
from appliance.api import transport
from appliance.api.client import CertifiedKey, Client, Rejected
from appliance.localnet import LocalNet
from appliance.localnet.files import COORDINATOR
from appliance.profile import load_profile
from policies.errors import Unavailable
from policies.requests import Hash
from tests.fakes.stalling import StallingRelay

POOL = (40, 80, 40)
GATE_DEADLINE_S = 3
# A ping is due, its answer is not there in half the time, and the link is made anew.
NOTICED_S = 1.5 * relay.HEARTBEAT_S + 2.0

pytestmark = pytest.mark.timeout(170)


class Stalled(LocalNet):
    """A network whose first signer reaches its coordinator and its gate through relays."""

    link: StallingRelay
    gate: StallingRelay
    key: CertifiedKey

    def route(self, stack: ExitStack) -> None:
        files = self._files
        signers_port = int(files.coordinators[COORDINATOR].listen_signers.rpartition(":")[2])
        self.link = stack.enter_context(StallingRelay(signers_port))
        self.gate = stack.enter_context(StallingRelay(files.gate_ports[0]))
        path = self.plan.signer(1) / "signer.yaml"
        text = path.read_text()
        for port, through in ((signers_port, self.link.port), (files.gate_ports[0], self.gate.port)):
            assert f":{port}" in text
            text = text.replace(f":{port}", f":{through}")
        path.write_text(text)
        path = self.plan.signer(1) / "enclave.yaml"
        text = path.read_text()
        assert "  mode: signed\n" in text
        path.write_text(text.replace("  mode: signed\n", f"  mode: signed\n  deadline_s: {GATE_DEADLINE_S}\n"))

    def sign(self, timeout_s: float = 40.0) -> None:
        with self.client() as client:
            client.sign(self.key.id, Hash("0x" + secrets.token_hex(32), secrets.token_hex(8)), timeout_s=timeout_s)

    def sockets(self, name: str) -> int:
        """How many sockets a process has open."""
        links = [str(fd.readlink()) for fd in Path(f"/proc/{self.processes[name].pid}/fd").iterdir() if fd.is_symlink()]
        return sum(link.startswith("socket:") for link in links)


@pytest.fixture(scope="module")
def net() -> Iterator[Stalled]:
    with ExitStack() as stack:
        made = Stalled(pool=POOL)
        stack.callback(made.close)
        made.write()
        made.route(stack)
        made.start()
        made.wait_for_pool(POOL[0])
        with made.client() as client:
            made.key = client.create_key("test/half-open", "half-open-key")
        yield made


def hang(net: Stalled) -> None:
    """Let the link hang; it is noticed within the bound, and a signature made."""
    made = net.link.connections
    net.link.stall()
    started_s = time.monotonic()
    net.wait_for(lambda: net.link.connections >= made + 2, "signer-1 to connect anew")
    assert time.monotonic() - started_s < NOTICED_S
    net.sign()


def test_a_hanging_link_is_noticed_and_made_anew(net: Stalled) -> None:
    net.sign()
    hang(net)


@pytest.mark.slow
def test_hanging_links_leave_nothing_behind(net: Stalled) -> None:
    """Their sockets are closed within the time that TLS takes to give up an orderly end, 30 s."""
    net.sign()
    before = {name: net.sockets(name) for name in ("signer-1", COORDINATOR)}
    for _ in range(3):
        hang(net)
    net.wait_for(
        lambda: all(net.sockets(name) <= count for name, count in before.items()), "the hanging sockets to be closed"
    )


def test_a_hanging_gate_is_a_refusal_with_the_reason_and_the_next_call_passes(net: Stalled) -> None:
    net.sign()
    net.gate.stall()
    started_s = time.monotonic()
    with pytest.raises(Rejected, match=r"signer-1: gate/timeout: no yes from the gate before the deadline") as refused:
        net.sign()
    assert refused.value.signer == "signer-1"
    assert time.monotonic() - started_s < GATE_DEADLINE_S + 5
    net.sign()


def test_a_client_whose_connection_hangs_is_told(net: Stalled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REQUEST_TIMEOUT_S", 1.0)
    profile = load_profile(net.profile)
    with StallingRelay(int(profile.api.rpartition(":")[2])) as relayed, net.client() as direct:
        with Client.of(replace(profile, api=f"https://127.0.0.1:{relayed.port}")) as client:
            assert client.get_key(net.key.id).id == net.key.id
            relayed.stall()
            with pytest.raises(Unavailable, match="see whether the coordinator runs"):
                client.get_key(net.key.id)
            # What is asked next goes over a new connection.
            assert client.get_key(net.key.id).id == net.key.id
        assert direct.get_key(net.key.id).id == net.key.id
