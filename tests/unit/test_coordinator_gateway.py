"""Who is admitted as a signer, and what a wrong message ends: its own connection, nothing else."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator
from functools import partial

import aiohttp
import msgspec
import pytest

from appliance import relay
from appliance.tls import client_context
from enclave import wire
from tests.fakes.coordinator_side import FakeNetwork, attached, until


@pytest.fixture
async def net(tmp_path: pathlib.Path) -> AsyncIterator[FakeNetwork]:
    async with FakeNetwork.start(tmp_path) as made:
        yield made


async def closed_with(
    net: FakeNetwork, data: bytes, certificate: str = "signer-1", *, text: bool = False
) -> tuple[int | None, str]:
    """The close code and reason after sending `data` first on a control connection."""
    tls = client_context(net.files.path("ca.pem"), *net.files.client(certificate))
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http,
        http.ws_connect(net.gateway + relay.CONTROL_PATH) as socket,
    ):
        await (socket.send_str("hello") if text else socket.send_bytes(data))
        message = await asyncio.wait_for(socket.receive(), 10)
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return socket.close_code, str(message.extra)


def announce(net: FakeNetwork) -> bytes:
    return wire.encode(relay.Announce("test", attached(net.dealer, 1)))


@pytest.mark.parametrize(
    ("changes", "certificate", "reason"),
    [
        ({}, "signer-2", "the certificate is of signer-2, the enclave is signer-1"),
        ({"roster_digest": b"x" * 32}, "signer-1", "your roster differs"),
        ({"network": "other"}, "signer-1", "this is network test, not other"),
        ({"fingerprint": "0000"}, "signer-1", "another fingerprint for signer-1"),
        ({"index": 2}, "signer-1", "signer-1 is not signer 2"),
        ({"index": 9}, "signer-1", "signer-1 is not signer 9"),
        ({"name": "stranger"}, "stranger", "stranger is not signer 1"),
    ],
)
async def test_an_announcement_that_does_not_fit_is_refused_with_the_reason(
    net: FakeNetwork, changes: dict[str, object], certificate: str, reason: str
) -> None:
    said_of_itself = msgspec.structs.replace(attached(net.dealer, 1), **changes)
    announcement = wire.encode(relay.Announce("test", said_of_itself))
    code, said = await closed_with(net, announcement, certificate)
    assert code == aiohttp.WSCloseCode.POLICY_VIOLATION
    assert reason in said
    assert net.coordinator.network.signers.online() == ()


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x93" * 4000, wire.encode(relay.Forward(1, b"x")), wire.encode(relay.Online(()))],
    ids=["empty", "no msgpack", "deep", "not an announcement", "a coordinator's message"],
)
async def test_a_malformed_first_message_closes_the_connection(net: FakeNetwork, data: bytes) -> None:
    code, _ = await closed_with(net, data)
    assert code == aiohttp.WSCloseCode.UNSUPPORTED_DATA


async def test_a_text_message_closes_the_connection(net: FakeNetwork) -> None:
    assert await closed_with(net, b"", text=True) == (aiohttp.WSCloseCode.UNSUPPORTED_DATA, "a text message")


async def test_without_a_client_certificate_there_is_no_connection(net: FakeNetwork) -> None:
    tls = client_context(net.files.path("ca.pem"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await http.ws_connect(net.gateway + relay.CONTROL_PATH)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        wire.encode(relay.Forward(1, b"to myself")),
        wire.encode(relay.ReportUp(wire.LinkReport(2, True, "")))[:-1],
    ],
    ids=["no msgpack", "frame to itself", "cut off"],
)
async def test_a_malformed_message_ends_that_signers_connections_alone(net: FakeNetwork, data: bytes) -> None:
    bad, good = net.signers[0], net.signers[1]
    signers = net.coordinator.network.signers
    async with bad.connected(net.gateway, net.files), good.connected(net.gateway, net.files):
        await until(lambda: signers.online() == (1, 2))
        await bad.send(data)
        await until(lambda: len(bad.closed) == 2)
        assert aiohttp.WSCloseCode.UNSUPPORTED_DATA in {code for code, _ in bad.closed}
        await until(lambda: good.online == (2,))
        assert good.closed == []


async def test_announcing_twice_ends_the_connection(net: FakeNetwork) -> None:
    signer = net.signers[0]
    async with signer.connected(net.gateway, net.files):
        await until(lambda: signer.online == (1,))
        await signer.send(announce(net))
        await until(lambda: len(signer.closed) == 2)
        assert "announced twice on one connection" in {reason for _, reason in signer.closed}


async def test_one_connection_alone_does_not_count_as_online(net: FakeNetwork) -> None:
    tls = client_context(net.files.path("ca.pem"), *net.files.client("signer-1"))
    signers = net.coordinator.network.signers
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http,
        http.ws_connect(net.gateway + relay.BULK_PATH) as bulk,
    ):
        await bulk.send_bytes(announce(net))
        async with net.signers[1].connected(net.gateway, net.files):
            await until(lambda: signers.online() == (2,))
            async with http.ws_connect(net.gateway + relay.CONTROL_PATH) as control:
                await control.send_bytes(announce(net))
                await until(lambda: signers.online() == (1, 2))


async def test_the_newest_connection_of_a_signer_replaces_the_old_one(net: FakeNetwork) -> None:
    old = net.signers[0]
    new, other = type(old)(net.dealer, 1), net.signers[1]
    signers = net.coordinator.network.signers
    async with old.connected(net.gateway, net.files), other.connected(net.gateway, net.files):
        await until(lambda: signers.linked((1, 2)))
        async with new.connected(net.gateway, net.files):
            await until(lambda: len(old.closed) == 2)
            await until(lambda: signers.linked((1, 2)))
            assert signers.online() == (1, 2)
            assert old.closed[0][1] == "a newer connection of this signer has come"
        await until(lambda: signers.online() == (2,))


async def test_two_enclaves_that_take_turns_as_one_signer_are_both_refused_until_a_new_boot(net: FakeNetwork) -> None:
    one, other = net.signers[0], net.signers[1]
    signers = net.coordinator.network.signers
    boots = [b"1" * 32, b"2" * 32]
    async with other.connected(net.gateway, net.files):
        for turn in range(4):
            async with one.connected(net.gateway, net.files, boot_nonce=boots[turn % 2]):
                await until(lambda: signers.online() == (1, 2))
            await until(lambda: signers.online() == (2,))
        for boot in boots:
            one.closed.clear()
            async with one.connected(net.gateway, net.files, boot_nonce=boot):
                await until(lambda: len(one.closed) == 2)
            assert {"two enclaves run with the identity" in reason for _, reason in one.closed} == {True}
            assert signers.online() == (2,)
        assert "two enclaves run with the identity of this signer" in signers.absence(1).reason
        async with one.connected(net.gateway, net.files, boot_nonce=b"3" * 32):
            await until(lambda: signers.online() == (1, 2))


async def test_restarts_however_many_are_no_copies(net: FakeNetwork) -> None:
    one = net.signers[0]
    signers = net.coordinator.network.signers
    for boot in range(40):
        for _ in range(2):  # and each reconnects
            async with one.connected(net.gateway, net.files, boot_nonce=bytes([boot]) * 32):
                await until(lambda: signers.online() == (1,))


async def test_links_count_only_when_both_ends_report_them(net: FakeNetwork) -> None:
    one, two = net.signers[0], net.signers[1]
    signers = net.coordinator.network.signers
    async with one.connected(net.gateway, net.files), two.connected(net.gateway, net.files):
        await until(lambda: signers.linked((1, 2)))
        await two.report(wire.LinkReport(1, False, "counter gap"))
        await until(lambda: not signers.linked((1, 2)))
        await two.report(wire.LinkReport(1, True, ""))
        await until(lambda: signers.linked((1, 2)))


async def test_setup_runs_again_above_the_highest_epoch_when_epochs_differ(net: FakeNetwork) -> None:
    net.signers[0].epoch, net.signers[1].epoch, net.signers[2].epoch = 4, 4, 2
    async with net.all_connected():
        orders = net.signers[2].received(wire.SetupOrder)
        assert [order.epoch for order in orders] == [5]
        assert [nonce.index for nonce in orders[0].nonces] == [1, 2, 3]


async def test_a_batch_that_one_member_did_not_finish_is_forgotten_by_the_others(net: FakeNetwork) -> None:
    failing, left = net.signers[2], [True]

    def once_failing(order: wire.PresignOrder) -> list[wire.Wire]:
        if left:
            left.pop()
            return [wire.CeremonyFailed(order.ceremony, "timeout", "3.5", "silence", (), (1,))]
        return list(failing.honest(order))

    failing.answers[wire.PresignOrder] = once_failing
    async with net.all_connected():
        first, second = net.signers[0].received(wire.PresignOrder)
        assert first.ceremony != second.ceremony
        for holder in net.signers[:2]:
            await until(partial(holder.received, wire.ForgetBatchOrder))
            assert len(holder.batches) == 1
        assert net.coordinator.network.pools.available((1, 2, 3)) == 8
