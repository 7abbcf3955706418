"""Two coordinators of one network, all of it real processes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from appliance.api.client import CertifiedKey
from appliance.cli import demo_inputs as inputs
from appliance.localnet import LocalNet
from policies.requests import Hash

A, B = "coordinator", "coordinator-2"
POOL = (50, 150, 50)


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    with LocalNet(coordinators=2, pool=POOL) as made:
        made.wait_for_pool(POOL[1])
        yield made


def new_id() -> str:
    return "two-" + secrets.token_hex(8)


@pytest.fixture(scope="module")
def key(net: LocalNet) -> CertifiedKey:
    with net.client(A) as client:
        return client.create_key("test/two", new_id())


def test_two_that_start_together_set_the_network_up_once(net: LocalNet) -> None:
    logs = [net.log(name).read_text() for name in (A, B)]
    assert sum(log.count('"setup-done"') for log in logs) == 1
    with net.client(A) as a, net.client(B) as b:
        for client in (a, b):
            assert [signer.announced.prss_epoch for signer in client.list_signers() if signer.announced] == [1, 1, 1]


def knows(net: LocalNet, coordinator: str, key_id: str) -> bool:
    with net.client(coordinator) as client:
        return key_id in {one.certified.id for one in client.list_keys() if one.certified}


def test_a_key_made_at_one_is_certified_and_signs_at_the_other(net: LocalNet, key: CertifiedKey) -> None:
    net.wait_for(lambda: knows(net, B, key.id), "the key to be known at the other coordinator", 5.0)
    with net.client(B) as client:
        shown = client.get_key(key.id)
        assert (shown.certified, shown.label, shown.answer.external_id) == (key.certified, "test/two", "")
        value = client.sign(key.id, Hash("0x" + secrets.token_hex(32), new_id(), (7,))).signature
    assert value is not None
    assert inputs.libsecp256k1_verifies(key.public_key((7,)), value)


def test_a_coordinator_that_was_away_learns_what_was_made_meanwhile(net: LocalNet) -> None:
    net.kill(B)
    with net.client(A) as client:
        made = [client.create_key(f"test/meanwhile/{number}", new_id()).id for number in range(3)]
    net.restart(B)
    net.wait_for(lambda: all(knows(net, B, key_id) for key_id in made), "the keys to be known")
    with net.client(B) as client:
        listed = [one.certified.id for one in client.list_keys() if one.certified]
    assert sorted(listed) == sorted(set(listed))
    assert set(made) <= set(listed)
