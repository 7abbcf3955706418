"""Two coordinators of one network, all of it real processes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from appliance.localnet import LocalNet

A, B = "coordinator", "coordinator-2"
POOL = (50, 150, 50)


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    with LocalNet(coordinators=2, pool=POOL) as made:
        made.wait_for_pool(POOL[1])
        yield made


def new_id() -> str:
    return "two-" + secrets.token_hex(8)


def test_two_that_start_together_set_the_network_up_once(net: LocalNet) -> None:
    logs = [net.log(name).read_text() for name in (A, B)]
    assert sum(log.count('"setup-done"') for log in logs) == 1
    with net.client(A) as a, net.client(B) as b:
        for client in (a, b):
            assert [signer.announced.prss_epoch for signer in client.list_signers() if signer.announced] == [1, 1, 1]
