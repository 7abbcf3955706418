"""An HSM that goes away from a running enclave process, or is away when it starts, and comes back by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave import wire
from tests.fakes.clients import TestClient, TestGate, open_policy
from tests.fakes.enclave_processes import Process, ProcessNet
from tests.fakes.enclaves import authorizations_of
from tests.fakes.softhsm import SoftToken

COMMITTEE = (1, 2, 3)
H = bytes(range(32))


class Away(ProcessNet):
    """Three processes; the first one's HSM can be pulled out."""

    client: TestClient

    @property
    def token(self) -> SoftToken:
        return SoftToken(self.members[1].directory / "hsm", "token-1")

    def status(self, state: str) -> wire.Status:
        """Ask the first enclave until it says `state`."""
        member = self.members[1]

        def reached() -> bool:
            self.tell(1, wire.StatusQuery())
            answered = len(member.said)
            self.wait(lambda: any(isinstance(said, wire.Status) for said in member.said[answered:]))
            return bool(member.said[-1].state == state) if isinstance(member.said[-1], wire.Status) else False

        self.wait(reached)
        found = member.said[-1]
        assert isinstance(found, wire.Status)
        return found

    def ask_one(self, body: Any, kind: type[Any]) -> Any:
        """The first enclave's answer to an order."""
        self.order(1, body)
        return self.take(kind, (1,))[1]

    def presignatures(self) -> int:
        pools = self.ask_one(wire.PoolsOrder(os.urandom(16)), wire.Pools)
        return sum(int.from_bytes(batch.remaining, "little").bit_count() for batch in pools.batches)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Away]:
    client, gate = TestClient(time.time), TestGate(time.time)
    made = Away(tmp_path, open_policy(client), gate.secrets, gate)
    made.client = client
    yield made
    made.stop()


def test_hsm_goes_away_from_a_running_enclave_and_comes_back(net: Away) -> None:
    net.start()
    net.setup()
    key_id = net.keygen(net.client.create_key())[1].certificates[0][0].acknowledgement.key_id
    sid = net.presign(COMMITTEE, 4)[1].sid
    first = wire.PresignatureName(sid, 1)
    assert net.status("ready").reason == ""

    net.token.take_away()
    # The first order finds out, whatever it was; from then on, orders are refused before anything is done for them.
    sign = wire.SignOrder(os.urandom(16), key_id, net.client.sign_hash(key_id, H), COMMITTEE, first)
    refused = net.ask_one(sign, wire.RequestRefused)
    assert refused.rule == "unavailable"
    assert "hsm" in refused.reason.lower()
    away = net.status("hsm-away")
    assert "check" in away.reason or "token" in away.reason
    refused = net.ask_one(sign, wire.RequestRefused)
    assert refused.rule == "unavailable"
    assert "served again when it is back" in refused.reason
    nonces = net.nonces(COMMITTEE, "keygen")
    keygen = wire.KeygenOrder(os.urandom(16), (net.client.create_key(),), nonces)
    assert "served again when it is back" in net.ask_one(keygen, wire.OrderRefused).reason
    # What needs no HSM goes on, and nothing is lost.
    assert net.presignatures() == 4
    # Links are lost and cannot be made again, since a handshake takes a signature of the HSM.
    net.presence((2, 3))
    net.tell(1, wire.Presence("main", (1,)))
    net.wait(lambda: sum(isinstance(report, wire.LinkReport) for report in net.reports[1]) == 2)
    net.drain()
    net.presence(COMMITTEE)
    net.wait(lambda: any(isinstance(r, wire.LinkReport) and "HSM" in r.reason for r in net.reports[1]))

    net.token.bring_back()
    assert net.status("ready").reason == ""
    net.wait(
        lambda: (
            {r.peer for r in net.reports[1] if isinstance(r, wire.LinkReport) and r.up} == {2, 3}
            and all(
                any(isinstance(r, wire.LinkReport) and r.up and r.peer == 1 for r in net.reports[j]) for j in (2, 3)
            )
        )
    )
    net.drain()
    assert net.presignatures() == 4
    process = net.members[1].process
    assert process is not None
    assert process.poll() is None
    ceremony, request = os.urandom(16), net.client.sign_hash(key_id, H)
    for j in COMMITTEE:
        net.order(j, wire.SignOrder(ceremony, key_id, request, COMMITTEE, first))
    authorized = net.take(wire.Authorized, COMMITTEE)
    for j in COMMITTEE:
        authorizations = authorizations_of({i: [report] for i, report in authorized.items()})
        net.order(j, wire.OnlineOrder(ceremony, key_id, authorizations))
    assert sorted(net.take(wire.ShareReport, COMMITTEE)) == [1, 2, 3]
    assert net.presignatures() == 3


def test_enclave_starts_without_its_hsm_and_serves_once_it_is_there(net: Away) -> None:
    net.token.take_away()
    one = net.members[1]
    one.start()
    assert one.stream is not None
    net.watch(one)
    assert net.status("hsm-away").reason != ""
    net.attach(1)
    net.wait(lambda: any(isinstance(said, wire.Attached) for said in one.said))
    setup = wire.SetupOrder(os.urandom(16), 1, ())
    assert "served again when it is back" in net.ask_one(setup, wire.OrderRefused).reason
    net.token.bring_back()
    assert net.status("waiting").reason.startswith("no PRSS seeds yet")


@pytest.mark.parametrize("later", [False, True], ids=["at the start", "once the token is there"])
def test_wrong_pin_ends_the_enclave_at_once(net: Away, later: bool) -> None:
    net.token.write_pin("pin-wrong-4711")
    one = net.members[1]
    if later:
        net.token.take_away()
        one.start()
        net.watch(one)
        net.status("hsm-away")
        net.token.bring_back()
        assert one.process is not None
        assert one.process.wait(30) == 2
        text = (one.directory / "log").read_text()
    else:
        ended = one.run_to_end("run")
        assert ended.returncode == 2
        text = ended.stderr.decode()
    assert "refused the PIN" in text
    assert "4711" not in text


def test_a_pin_that_was_changed_meanwhile_is_tried_once_and_the_right_one_as_soon_as_it_is_there(net: Away) -> None:
    one, pin = net.members[1], "pin-other-4712"
    one.start()
    net.watch(one)
    net.attach(1)
    net.status("waiting")
    net.token.take_away()
    # An idle HSM is asked every ten seconds.
    net.status("hsm-away")
    net.token.change_pin(pin)
    net.token.bring_back()
    net.wait(lambda: "refused the PIN" in net.status("hsm-away").reason)
    setup = wire.SetupOrder(os.urandom(16), 1, ())
    assert "served again when it is back" in net.ask_one(setup, wire.OrderRefused).reason
    refusals = [line for line in (one.directory / "log").read_text().splitlines() if "refused the PIN" in line]
    assert len(refusals) == 1
    net.token.write_pin(pin)
    assert net.status("waiting").reason.startswith("no PRSS seeds yet")
    assert net.members[1].process is not None
    assert net.members[1].process.poll() is None


def test_another_signers_token_is_refused_at_once(net: Away) -> None:
    one, two = net.members[1], net.members[2]
    swapped = one.config.read_text().replace("token-1", "token-2").replace(str(one.directory), str(two.directory))
    one.config.write_text(swapped)
    ended = one.run_to_end("run", environment={"SOFTHSM2_CONF": str(two.directory / "hsm" / "softhsm2.conf")})
    assert ended.returncode == 2
    assert "not the one the roster lists for signer-1" in ended.stderr.decode()


def test_missing_gate_secrets_end_the_start_at_once(net: Away) -> None:
    one: Process = net.members[1]
    (one.directory / "gate-secrets.sealed").unlink()
    ended = one.run_to_end("run")
    assert ended.returncode == 2
    assert "keymoot gate secret" in ended.stderr.decode()
