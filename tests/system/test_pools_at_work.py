"""Pools of real enclaves under load: a burst larger than all of them, a signer killed meanwhile, restarts."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator

import pytest

from appliance.api.client import AsyncClient, CertifiedKey, Failed
from appliance.api.models import SignatureState
from appliance.localnet import LocalNet
from policies.requests import Hash

# Five pools of 3 signers each; none holds what the burst needs.
POOL = (20, 40, 20)
BURST = 400
AT_ONCE = 100


def new_id() -> str:
    return secrets.token_hex(8)


@pytest.fixture(scope="module")
def net() -> Iterator[LocalNet]:
    with LocalNet(5, 1, gate=False, pool=POOL) as running:
        running.wait_for_pool(POOL[0])
        yield running


@pytest.fixture(scope="module")
def key(net: LocalNet) -> CertifiedKey:
    with net.client() as client:
        return client.create_key("pools/one", "pools-key")


async def burst(net: LocalNet, key: CertifiedKey, meanwhile: str = "") -> list[str]:
    """Sign `BURST` hashes, `AT_ONCE` at a time; every outcome. `meanwhile`: the process that is killed."""
    places = asyncio.Semaphore(AT_ONCE)
    done = 0

    async def one(client: AsyncClient) -> str:
        nonlocal done
        async with places:
            try:
                answer = await client.sign(key.id, Hash("0x" + secrets.token_hex(32), new_id()))
            except Failed as error:
                return f"{error.code}: {error.reason}"
            done += 1
            if done == BURST // 4 and meanwhile:
                net.kill(meanwhile)
            return str(answer.status)

    async with net.async_client() as client:
        return await asyncio.gather(*(one(client) for _ in range(BURST)))


async def test_a_burst_larger_than_all_pools_waits_and_is_signed(net: LocalNet, key: CertifiedKey) -> None:
    assert sum(net.pools().values()) < BURST
    assert set(await burst(net, key)) == {str(SignatureState.SIGNED)}
    async with net.async_client() as client:
        pools = await client.pools()
    spent = [pool.busiest_minute for pool in pools.items]
    assert sum(spent) >= BURST
    # No committee is left aside, and none carries it all.
    assert min(spent) > 0
    assert max(spent) < BURST / 2
    assert pools.waiting == 0


async def test_a_signer_that_dies_in_a_burst_costs_no_request(net: LocalNet, key: CertifiedKey) -> None:
    outcomes = await burst(net, key, meanwhile="enclave-2")
    assert set(outcomes) == {str(SignatureState.SIGNED)}, outcomes
    net.restart("enclave-2")


def test_pools_come_back_after_the_coordinator_and_an_enclave_restart(net: LocalNet, key: CertifiedKey) -> None:
    for victim in ("coordinator", "enclave-4"):
        net.kill(victim)
        net.restart(victim)
    net.wait_for_pool(POOL[0])
    with net.client() as client:
        assert client.sign(key.id, Hash("0x" + secrets.token_hex(32), new_id())).status is SignatureState.SIGNED
