"""Pools under load: who waits is served in turn, filling is paced, committees move away from bad signers."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial

import pytest

from appliance.coordinator import presigning
from appliance.coordinator import refill as module
from appliance.coordinator.config import PoolSettings
from appliance.coordinator.consumption import Marks
from appliance.coordinator.errors import CeremonyEnded
from appliance.coordinator.network import Network
from appliance.coordinator.refill import marks_of
from enclave import wire
from policies.errors import Refused
from tests.fakes.certificates import Dealer
from tests.fakes.coordinator_side import FakeNetwork, FakeSigner, until

C = (1, 2, 3)


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made, made.all_connected():
        yield made


@pytest.fixture
async def five(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path, 5, 1) as made, made.all_connected():
        pools = made.coordinator.network.pools
        await until(lambda: len(pools.committees()) == 5)
        yield made


async def drained(net: FakeNetwork) -> None:
    """Stop the refill and use up every presignature."""
    network = net.coordinator.network
    for signer in net.signers:
        signer.answers[wire.PresignOrder] = lambda order: []
    for committee in network.committees():
        while network.pools.available(committee):
            network.pools.spend(network.pools.take(committee))


def refilling(net: FakeNetwork) -> None:
    """Let batches be made again, at once."""
    for signer in net.signers:
        signer.answers.pop(wire.PresignOrder, None)
    # The batch that nobody answers is given up.
    net.coordinator.network.ceremonies.on_lost(1)


async def serve(network: Network, name: str, served: list[str], count: int = 1, timeout_s: float = 20.0) -> None:
    """As a request: a committee, and its presignatures taken before anything else."""
    single = partial(network._committee, timeout_s, 1, patient=False, prefer=())
    committee = await (single() if count == 1 else network.committee_for_batch(count))
    for name_taken in network.pools.take_all(committee, count):
        network.pools.spend(name_taken)
    served.append(name)


async def test_a_burst_that_drains_the_pool_is_served_in_the_order_in_which_it_came(net: FakeNetwork) -> None:
    network, served = net.coordinator.network, list[str]()
    await drained(net)
    tasks = [asyncio.create_task(serve(network, str(number), served)) for number in range(40)]
    await until(lambda: len(network.line) == 40)
    assert (await net.get("/v1/pools"))[1]["waiting"] == 40
    refilling(net)
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    assert served == [str(number) for number in range(40)]


async def test_a_large_batch_is_not_overtaken_by_single_requests(net: FakeNetwork) -> None:
    network, served = net.coordinator.network, list[str]()
    await drained(net)
    tasks = [asyncio.create_task(serve(network, f"before-{number}", served)) for number in range(3)]
    await until(lambda: len(network.line) == 3)
    tasks.append(asyncio.create_task(serve(network, "batch", served, count=30)))
    await until(lambda: len(network.line) == 4)
    tasks += [asyncio.create_task(serve(network, f"after-{number}", served)) for number in range(10)]
    await until(lambda: len(network.line) == 14)
    refilling(net)
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    assert served.index("batch") == 3
    assert served[4:] == [f"after-{number}" for number in range(10)]


async def test_who_waits_too_long_fails_and_the_next_one_is_served(net: FakeNetwork) -> None:
    network, served = net.coordinator.network, list[str]()
    await drained(net)
    hasty = asyncio.create_task(serve(network, "hasty", served, timeout_s=0.05))
    await until(lambda: len(network.line) == 1)
    patient = asyncio.create_task(serve(network, "patient", served))
    with pytest.raises(CeremonyEnded, match="no-committee: the pools of presignatures are empty"):
        await hasty
    refilling(net)
    await asyncio.wait_for(patient, 20)
    assert served == ["patient"]


async def test_the_first_batch_of_an_empty_pool_is_small(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_BATCH", 2)
    async with FakeNetwork.start(tmp_path) as net, net.all_connected():
        await until(lambda: net.coordinator.network.pools.available(C) >= 8)
        assert [order.count for order in net.signers[0].received(wire.PresignOrder)][:2] == [2, 8]


async def test_filling_makes_room_for_signatures_unless_somebody_waits(net: FakeNetwork) -> None:
    network = net.coordinator.network
    refill = network.refill
    refill._resume_s = refill.clock() + 60.0
    assert not await refill._paused()  # nobody signs
    with network.ceremonies.open(C):
        pause = asyncio.create_task(refill._paused())
        await asyncio.sleep(0)
        assert not pause.done()
        async with network.line.turn():
            network._changes.notify()
            assert await asyncio.wait_for(pause, 10)
            assert not await refill._paused()


async def test_a_pause_ends_by_itself(net: FakeNetwork) -> None:
    network = net.coordinator.network
    network.refill._resume_s = network.refill.clock() + 0.05
    with network.ceremonies.open(C):
        assert await asyncio.wait_for(network.refill._paused(), 10)
        assert not await network.refill._paused()


async def test_nonces_are_there_before_a_batch_is_wanted_and_serve_one_batch_each(net: FakeNetwork) -> None:
    network = net.coordinator.network

    def order(index: int) -> list[str]:
        kinds = (wire.PrepareOrder, wire.PresignOrder)
        named = [each for each in net.signers[index - 1].orders if isinstance(each, kinds)]
        return [each.purpose if isinstance(each, wire.PrepareOrder) else "batch" for each in named]

    await until(lambda: not network.refill.filling(C).wanted and len(network.pools.committees()) == 1)
    await until(lambda: order(1)[-1] == "presign")
    before = len(order(1))
    while network.pools.available(C) >= network.refill.marks().low:
        network.pools.spend(network.pools.take(C))
    await until(lambda: len(order(1)) >= before + 2)
    # The batch goes out with the nonce that was asked for before; the next one is asked for at once.
    for index in C:
        assert order(index)[before : before + 2] == ["batch", "presign"]


async def test_a_nonce_of_an_earlier_session_is_not_used(net: FakeNetwork) -> None:
    nonces = net.coordinator.network._nonces
    await until(lambda: set(nonces._held) == set(C))
    nonces.on_lost(2)
    nonces.on_online(2)
    assert set(nonces._held) == {1, 3}
    taken = await nonces.take(C)
    assert [nonce.index for nonce in taken] == [1, 2, 3]


async def test_committees_are_used_evenly(five: FakeNetwork) -> None:
    network = five.coordinator.network
    pools, used = network.pools, list[tuple[int, ...]]()
    await until(lambda: all(pools.available(committee) == 8 for committee in network.committees()))
    for _ in range(25):
        committee = await network.committee()
        pools.spend(pools.take(committee))
        used.append(committee)
    counts = [used.count(committee) for committee in network.committees()]
    assert max(counts) - min(counts) <= 1


async def test_a_signer_that_failed_is_left_out_while_others_can_stand_in(five: FakeNetwork) -> None:
    network = five.coordinator.network
    network.standing.failed(2, "timeout")
    assert all(2 not in committee for committee in network.refill.preferred())
    assert 2 not in await network.committee()
    assert (await five.get("/v1/coordinator"))[1]["avoided"] == ["signer-2"]


async def test_what_was_spent_is_shown_of_a_pool_that_is_used_up_and_not_filled_now(five: FakeNetwork) -> None:
    network = five.coordinator.network
    committee = network.committees()[0]
    for signer in five.signers:
        signer.answers[wire.PresignOrder] = lambda order: []
    network.standing.failed(committee[0], "timeout")
    spent = 0
    while network.pools.available(committee):
        network.pools.spend(network.pools.take(committee))
        spent += 1
    assert committee not in network.committees()
    shown = (await five.get("/v1/pools"))[1]["items"]
    assert [pool["busiestMinute"] for pool in shown if pool["committee"] == list(committee)] == [spent]


async def test_marks_are_recommended_for_a_burst_that_all_pools_share(five: FakeNetwork) -> None:
    async def recommended(burst: int) -> set[tuple[int, int]]:
        shown = (await five.get(f"/v1/pools?burst={burst}"))[1]
        assert shown["burst"] == burst
        return {(pool["recommendedLow"], pool["recommendedHigh"]) for pool in shown["items"]}

    assert await recommended(1001) == {(201, 209)}
    # Each signer has a part in three of the five pools.
    most = wire.MAX_PRESIGNATURES // 3 - 8
    assert await recommended(100_000) == {(20_000, 20_008)}
    assert five.coordinator.network.refill.most() == most


async def test_a_signer_that_failed_is_asked_where_it_is_needed(net: FakeNetwork) -> None:
    network = net.coordinator.network
    network.standing.failed(2, "timeout")
    assert network.refill.preferred() == (C,)
    assert await network.committee() == C


async def test_a_signer_that_does_not_answer_the_online_step_is_left_out(
    five: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.coordinator import signing

    monkeypatch.setattr(signing.Signing, "online_timeout_s", 0.2)
    network = five.coordinator.network
    five.signers[0].answers[wire.OnlineOrder] = lambda order: []
    creation = {
        "scheme": "ECDSA", "curve": "secp256k1", "signers": 5, "tolerate": 1, "label": "l", "externalId": "key-1",
    }  # fmt: skip
    status, key = await five.post("/v1/keys", creation)
    assert status == 201, key
    h = "0x" + bytes(range(32)).hex()
    for number in range(4):
        body = {"kind": "Hash", "hash": h, "externalId": f"sig-{number}", "derivationPath": []}
        status, shown = await five.post(f"/v1/keys/{key['id']}/signatures", body)
        assert shown["status"] == "Signed", shown
    assert network.standing.avoided() == {1}


async def test_pools_fill_although_one_signer_spoils_every_batch_that_it_has_a_part_in(
    five: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signer 2 is silent in batches alone, and says that another one was."""
    monkeypatch.setattr(presigning, "SETTLE_UNPROVEN_S", 0.3)
    network = five.coordinator.network

    def waits(reporter: int) -> Callable[[wire.Wire], Iterable[wire.Wire]]:
        def answer(order: wire.Wire) -> Iterable[wire.Wire]:
            assert isinstance(order, wire.PresignOrder)
            if 2 not in order.committee:
                return five.signers[reporter - 1].honest(order)
            blamed = next(index for index in order.committee if index not in (2, reporter)) if reporter == 2 else 2
            return [wire.CeremonyFailed(order.ceremony, "timeout", "", "no end within 60 s", (), (blamed,))]

        return answer

    for index, signer in enumerate(five.signers, 1):
        signer.answers[wire.PresignOrder] = waits(index)
    network.pools.drop_all()
    for signer in five.signers:
        signer.batches.clear()
    await until(lambda: sum(2 not in c and network.pools.available(c) == 8 for c in network.committees()) >= 1, 20)
    assert 2 in network.standing.avoided()
    assert 2 not in await network.committee()


async def test_pools_fill_again_after_a_signer_has_restarted(net: FakeNetwork) -> None:
    network = net.coordinator.network
    first = net.signers[0]
    for socket in first.sockets.values():
        await socket.close()
    await until(lambda: network.signers.online() == (2, 3))
    first.batches.clear()
    first.online = ()
    async with first.connected(net.gateway, net.files, boot_nonce=b"2" * 32, prss_epoch=1):
        await until(lambda: network.pools.available(C) == 8)


async def test_pools_fill_again_after_a_new_epoch(net: FakeNetwork) -> None:
    network = net.coordinator.network
    network.pools.drop_all()
    assert network.pools.available(C) == 0
    assert await asyncio.wait_for(network.committee(), 10) == C
    await until(lambda: network.pools.available(C) >= 2)


@pytest.mark.parametrize(
    ("n", "t", "settings", "marks"),
    [
        (3, 1, PoolSettings(low=100, high=1000, batch=100), Marks(100, 1000)),
        (5, 2, PoolSettings(low=90_000, high=100_000, batch=4096), Marks(90_000, 100_000)),
        (5, 1, PoolSettings(low=90_000, high=100_000, batch=4096), Marks(62_570, 62_570)),
        (7, 2, PoolSettings(low=1000, high=100_000, batch=10_000), Marks(1000, 30_000)),
    ],
)
def test_marks_keep_within_what_one_signer_may_hold(n: int, t: int, settings: PoolSettings, marks: Marks) -> None:
    listed = Dealer.make(n, t).roster
    assert marks_of(listed, settings) == marks
    pools_of_one = 1 if n == 2 * t + 1 else 2 * t + 1
    assert pools_of_one * (marks.high + settings.batch) <= wire.MAX_PRESIGNATURES + settings.batch


async def only_one_three_and_five(network: Network) -> None:
    """Signers 2 and 4 fail: the others are no neighbours, and get a pool that they did not have."""
    for index in (2, 4):
        network.standing.failed(index, "timeout")
    network._changes.notify()
    assert network.refill.preferred() == ((1, 3, 5),)
    await until(lambda: network.pools.available((1, 3, 5)) == 8, 20)


async def test_pools_that_are_not_kept_any_more_are_given_up_for_room(
    five: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = five.coordinator.network
    pools = network.pools
    await until(lambda: all(pools.available(committee) == 8 for committee in network.committees()))
    monkeypatch.setattr(module, "MAX_PRESIGNATURES", 3 * 8)
    await only_one_three_and_five(network)
    assert all(pools.held(member) <= 24 for member in range(1, 6))
    for signer in five.signers:
        await until(lambda signer=signer: sum(order.count for order in signer.batches.values()) <= 24)


async def test_they_are_given_up_too_where_other_coordinators_have_their_share_of_the_room(five: FakeNetwork) -> None:
    network = five.coordinator.network
    pools = network.pools
    await until(lambda: all(pools.available(committee) == 8 for committee in network.committees()))

    def bounded(signer: FakeSigner) -> Callable[[wire.Wire], Iterable[wire.Wire]]:
        def answer(order: wire.Wire) -> Iterable[wire.Wire]:
            assert isinstance(order, wire.PresignOrder)
            if sum(batch.count for batch in signer.batches.values()) + order.count > 24:
                refusal = Refused("pool", "c1 has 24 of the 24 that each of 2 coordinators may have")
                return [wire.OrderRefused(order.ceremony, str(refusal))]
            return signer.honest(order)

        return answer

    for signer in five.signers:
        signer.answers[wire.PresignOrder] = bounded(signer)
    await only_one_three_and_five(network)


async def test_a_signer_with_no_room_at_all_is_a_failure_that_says_so(
    net: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = net.coordinator.network
    monkeypatch.setattr(module, "MAX_PRESIGNATURES", 4)
    await drained(net)
    with pytest.raises(CeremonyEnded, match=r"no room for 8: lower pool\.high"):
        await network.refill.step()
    assert "no room for 8" in (await net.get("/v1/pools"))[1]["items"][0]["failure"]
