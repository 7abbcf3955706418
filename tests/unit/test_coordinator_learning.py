"""How a coordinator learns of keys that were made through others, from fake signers over real TLS."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from appliance import relay
from appliance.coordinator.server import Coordinator
from enclave import wire
from tests.fakes.coordinator_side import FakeNetwork, until


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made:
        yield made


def certificate(net: FakeNetwork, number: int) -> tuple[wire.SignedAcknowledgement, ...]:
    """That of a key made elsewhere."""
    key_id = f"key_{number:032x}"
    return tuple(net.dealer.certificate(lambda ack: msgspec.structs.replace(ack, key_id=key_id, label=f"k/{number}")))


async def listed(net: FakeNetwork) -> list[str]:
    return [key["label"] for key in (await net.get("/v1/keys"))[1]["items"]]


async def test_page_after_page_is_read_and_nobody_is_told_to_activate_what_it_lists(net: FakeNetwork) -> None:
    for signer in net.signers:
        signer.certificates = [certificate(net, number) for number in range(1, 6)]
    async with net.all_connected():
        await until(lambda: len(net.signers[2].asked_keys) == 3)
        assert [each.after for each in net.signers[2].asked_keys] == [0, 2, 4]
        assert await listed(net) == [f"k/{number}" for number in range(1, 6)]
        key_id = f"key_{1:032x}"
        status, shown = await net.get(f"/v1/keys/{key_id}")
        assert (status, shown["status"], shown["id"], shown["externalId"]) == (200, "Active", key_id, "")
        assert len(shown["certificate"]["acknowledgements"]) == 3
        await net.signers[0].send(relay.KeyAdded())
        await until(lambda: len(net.signers[0].asked_keys) == 4)
        assert net.signers[0].asked_keys[-1] == relay.KeysAfter(5, f"key_{5:032x}")
        assert not any(signer.received(wire.ActivateOrder) for signer in net.signers)


async def test_a_signer_that_does_not_list_a_key_is_given_its_certificate(net: FakeNetwork) -> None:
    for signer in net.signers[:2]:
        signer.certificates = [certificate(net, 1)]
    async with net.all_connected():
        await until(lambda: net.signers[2].received(wire.ActivateOrder))
        assert not net.signers[0].received(wire.ActivateOrder)


async def test_after_a_restart_only_what_is_new_is_asked_for(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path) as net:
        net.signers[0].certificates = [certificate(net, number) for number in (1, 2, 3)]
        async with net.all_connected():
            await until(lambda: len(net.signers[0].asked_keys) == 2)
            await until(lambda: net.coordinator.network._learning._asked == {})
    for signer in net.signers:
        signer.asked_keys, signer.online = [], ()
    async with Coordinator(net.config) as again:
        net.use(again)
        async with net.client(), net.all_connected():
            await until(lambda: bool(net.signers[0].asked_keys))
            assert net.signers[0].asked_keys == [relay.KeysAfter(3, f"key_{3:032x}")]
            assert await listed(net) == ["k/1", "k/2", "k/3"]


async def test_a_certificate_that_does_not_verify_is_not_shown_and_its_signer_is_not_asked_again(
    net: FakeNetwork,
) -> None:
    good, bad = certificate(net, 1), certificate(net, 2)
    forged = (bad[0], bad[1], msgspec.structs.replace(bad[2], signature=bytes(64)))
    net.signers[0].certificates = [forged]
    net.signers[1].certificates = [good]
    async with net.all_connected():
        await until(lambda: set(net.coordinator.network._learning._asked) == {1})
        await net.signers[0].send(relay.KeyAdded())
        await until(lambda: net.coordinator.network._keybook.knows(f"key_{1:032x}"))
        assert await listed(net) == ["k/1"]
        assert len(net.signers[0].asked_keys) == 1


async def test_a_page_that_nobody_asked_for_changes_nothing(net: FakeNetwork) -> None:
    async with net.all_connected():
        await until(lambda: net.coordinator.network._learning._asked == {})
        page = relay.KeyPage(0, (relay.NumberedKey(1, certificate(net, 1)),), False)
        await net.signers[0].send(page)
        await net.signers[0].send(relay.KeyAdded())
        await until(lambda: len(net.signers[0].asked_keys) == 2)
        await until(lambda: net.coordinator.network._learning._asked == {})
        assert await listed(net) == []


async def test_numbers_that_do_not_grow_are_refused(net: FakeNetwork) -> None:
    first = net.signers[0]
    first.key_page = lambda question: relay.KeyPage(  # type: ignore[method-assign, misc]
        0, tuple(relay.NumberedKey(seq, certificate(net, seq)) for seq in (2, 2)), True
    )
    async with net.all_connected():
        await until(lambda: bool(first.asked_keys))
        await until(lambda: set(net.coordinator.network._learning._asked) == {1})
        assert await listed(net) == []
        assert len(first.asked_keys) == 1


async def test_a_list_that_begins_again_and_again_is_not_read_for_ever(net: FakeNetwork) -> None:
    first = net.signers[0]
    keys = tuple(relay.NumberedKey(seq, certificate(net, seq)) for seq in (1, 2))
    first.key_page = lambda question: relay.KeyPage(0, keys, True)  # type: ignore[method-assign, misc]
    async with net.all_connected():
        await until(lambda: len(first.asked_keys) == 3)
        await until(lambda: set(net.coordinator.network._learning._asked) == {1})
        await first.send(relay.KeyAdded())
        net.signers[1].certificates = [certificate(net, 3)]
        await net.signers[1].send(relay.KeyAdded())
        await until(lambda: net.coordinator.network._keybook.knows(f"key_{3:032x}"))
        assert len(first.asked_keys) == 3


async def test_an_empty_page_with_more_behind_it_is_refused(net: FakeNetwork) -> None:
    first = net.signers[0]
    first.key_page = lambda question: relay.KeyPage(0, (), True)  # type: ignore[method-assign, misc]
    async with net.all_connected():
        await until(lambda: set(net.coordinator.network._learning._asked) == {1})
        assert len(first.asked_keys) == 1


async def test_one_signer_has_one_page_waiting_and_is_asked_again_for_what_was_dropped(tmp_path: pathlib.Path) -> None:
    async with FakeNetwork.start(tmp_path) as net:
        learning = net.coordinator.network._learning
        asked: list[int] = []
        learning._ask = lambda index, question: asked.append(index)
        for index in net.dealer.roster.indices:
            learning.on_online(index)
        page = relay.KeyPage(0, (), False)
        for _ in range(50):
            learning.on_page(1, page)
        for index in (2, 3):
            learning.on_page(index, page)
        await until(lambda: learning._asked == {1: 0})
        assert asked == [1, 2, 3, 1]
