"""Real processes: a limit of three in an hour passes three, whatever is killed between them (SPEC 7)."""

from __future__ import annotations

import json
import secrets
import signal
import sqlite3
from collections.abc import Iterator

import pytest

from appliance.api.client import CertifiedKey, Rejected
from appliance.cli import demo_inputs as inputs
from appliance.localnet import LocalNet
from policies.requests import Hash

POOL = (12, 24, 12)
LIMITS = """limits:
  - {name: hourly, within: 1h, signatures: 3}
"""

pytestmark = pytest.mark.timeout(170)


class Limited(LocalNet):
    """A network whose signers sign three times in an hour."""

    def write(self) -> None:
        super().write()
        for index in self.plan.indices:
            path = self.plan.signer(index) / "policy.yaml"
            path.write_text(path.read_text() + LIMITS)


@pytest.fixture
def net() -> Iterator[Limited]:
    with Limited(pool=POOL) as made:
        made.wait_for_pool(POOL[0])
        yield made


def sign(net: LocalNet, key: CertifiedKey) -> None:
    with net.client() as client:
        signed = client.sign(key.id, Hash("0x" + secrets.token_hex(32), secrets.token_hex(8)), timeout_s=30.0)
    assert signed.signature is not None
    assert inputs.libsecp256k1_verifies(key.public_key(), signed.signature)


def kill(net: LocalNet, *victims: str) -> None:
    for victim in victims:
        net.kill(victim, signal.SIGKILL)
    for victim in victims:
        net.processes[victim].start()
    for victim in victims:
        net.wait_ready(victim)
    net.wait_for_pool(POOL[0])


def charges(net: LocalNet, index: int) -> list[str]:
    with sqlite3.connect(f"file:{net.plan.signer(index)}/state/signer.db?mode=ro", uri=True) as connection:
        bodies = [json.loads(body) for (body,) in connection.execute("select body from audit order by seq")]
    return [charge for body in bodies if body["event"] == "share" for charge in body["charged"]]


def test_three_pass_and_no_fourth_whatever_is_killed(net: Limited) -> None:
    with net.client() as client:
        key = client.create_key("test/limits", "limits-key")
    sign(net, key)
    kill(net, "enclave-1", "signer-2")
    sign(net, key)
    kill(net, "signer-1", "enclave-2")
    sign(net, key)
    for victims in ((), ("enclave-1", "enclave-3", "signer-3")):
        kill(net, *victims)
        with pytest.raises(Rejected, match="the limit hourly has room for 0 of 3"):
            sign(net, key)
    assert [charges(net, index) for index in net.plan.indices] == [["1 hourly 3600s"] * 3] * 3
