"""A gate that needs hours: signers and the coordinator go and come, no presignature is held, nobody asked in vain."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from appliance.coordinator.gates import unheld
from appliance.coordinator.server import Coordinator
from enclave import wire
from tests.fakes.coordinator_side import FakeNetwork, FakeSigner, until

UNTIL_S = 2**33
(NOBODYS,) = unheld(1)
CREATION = {
    "scheme": "ECDSA",
    "curve": "secp256k1",
    "signers": 3,
    "tolerate": 1,
    "label": "treasury",
    "externalId": "key-1",
}
BODY = {"kind": "Hash", "hash": "0x" + "22" * 32, "externalId": "gate-1", "derivationPath": []}


class SlowGate:
    """Signer 2's gate: pending until told otherwise, whatever it is asked about."""

    def __init__(self, signer: FakeSigner) -> None:
        self.signer = signer
        self.held: list[wire.SignOrder] = []
        signer.answers[wire.SignOrder] = self._pending

    def _pending(self, order: wire.SignOrder) -> Iterable[wire.Wire]:
        self.held.append(order)
        return [wire.GatePending(order.ceremony, UNTIL_S)]

    async def say_yes(self) -> None:
        self.signer.answers.clear()
        await self.signer.report(wire.UnknownPresignature(self.held[-1].ceremony, NOBODYS))

    async def say_no(self) -> None:
        await self.signer.report(wire.RequestRefused(self.held[-1].ceremony, "gate", "not today"))


@asynccontextmanager
async def pending(directory: pathlib.Path) -> AsyncIterator[tuple[FakeNetwork, SlowGate, str]]:
    """A network whose signer 2 is being asked, all the others having said yes; the path of the request."""
    async with FakeNetwork.start(directory) as net, net.all_connected():
        status, key = await net.post("/v1/keys", CREATION)
        assert (status, key["status"]) == (201, "Active"), key
        gate = SlowGate(net.signers[1])
        _, shown = await net.post(f"/v1/keys/{key['id']}/signatures", BODY, wait_s=0)
        await until(lambda: len(gate.held) == 2)
        yield net, gate, f"/v1/keys/{key['id']}/signatures/{shown['id']}"


async def ended(net: FakeNetwork, path: str) -> dict[str, object]:
    """The request once it has ended."""
    _, shown = await net.post(path.rpartition("/")[0], BODY)
    assert path.endswith(str(shown["id"]))
    return shown


def waiting(net: FakeNetwork) -> list[str]:
    """Requests that the coordinator's store says are waiting for gates."""
    with contextlib.closing(sqlite3.connect(net.config.state)) as database:
        return [row[0] for row in database.execute("select id from waiting")]


def orders(net: FakeNetwork) -> list[int]:
    return [len(signer.received(wire.SignOrder)) for signer in net.signers]


async def test_nothing_is_reserved_and_the_others_are_not_asked_again(tmp_path: pathlib.Path) -> None:
    async with pending(tmp_path) as (net, gate, path):
        assert gate.held[1].presignature == NOBODYS
        pools = net.coordinator.network.pools
        assert pools.available((1, 2, 3)) == sum(batch.count for batch in net.signers[0].batches.values())
        assert orders(net) == [1, 2, 1]
        await gate.say_yes()
        assert (await ended(net, path))["status"] == "Signed"
        assert orders(net) == [2, 3, 2]


async def test_a_no_after_hours_is_rejected_with_the_gates_reason(tmp_path: pathlib.Path) -> None:
    async with pending(tmp_path) as (net, gate, path):
        await gate.say_no()
        shown = await ended(net, path)
        assert shown["status"] == "Rejected"
        assert shown["reason"] == {"code": "gate", "message": "not today", "signer": "signer-2"}


async def test_a_signer_that_comes_back_is_asked_on(tmp_path: pathlib.Path) -> None:
    """However often: no attempt is counted while a gate decides."""
    async with FakeNetwork.start(tmp_path) as net, contextlib.AsyncExitStack() as others:
        for signer in (net.signers[0], net.signers[2]):
            await others.enter_async_context(signer.connected(net.gateway, net.files))
        path = ""
        gate, times = SlowGate(net.signers[1]), 4
        for number in range(times + 1):
            net.signers[1].online = ()
            async with net.signers[1].connected(net.gateway, net.files):
                if number == 0:
                    await net.ready()
                    _, key = await net.post("/v1/keys", CREATION)
                    _, shown = await net.post(f"/v1/keys/{key['id']}/signatures", BODY, wait_s=0)
                    path = f"/v1/keys/{key['id']}/signatures/{shown['id']}"
                await until(lambda number=number: len(gate.held) == number + 2)  # type: ignore[misc]
                assert (await net.get(path))[1]["status"] == "Executing"
                if number == times:
                    await net.ready()
                    await gate.say_yes()
                    assert (await ended(net, path))["status"] == "Signed"
        assert orders(net) == [2, times + 3, 2]


async def test_a_coordinator_that_comes_back_asks_the_pending_gate_alone(tmp_path: pathlib.Path) -> None:
    async with pending(tmp_path) as (net, gate, path):
        while (await net.get(path))[1]["status"] != "Executing":
            pass
        assert waiting(net) == [path.rpartition("/")[2]]
        config = net.config
    async with Coordinator(config) as again:
        net.use(again)
        for signer in net.signers:
            signer.online = ()
        async with net.client(), net.all_connected():
            await until(lambda: len(gate.held) == 3)
            assert gate.held[2].presignature == NOBODYS
            assert orders(net) == [1, 3, 1]
            assert (await net.get(path))[1]["status"] == "Executing"
            await gate.say_yes()
            shown = await ended(net, path)
            assert (shown["status"], shown.get("reason")) == ("Signed", None)
            assert orders(net) == [2, 4, 2]
            await until(lambda: waiting(net) == [])


async def test_an_enclave_that_restarted_fails_the_request_since_it_must_be_signed_anew(tmp_path: pathlib.Path) -> None:
    async with pending(tmp_path) as (net, gate, path):
        reason = "signed before this enclave's start"
        await gate.signer.report(wire.RequestRefused(gate.held[-1].ceremony, "request/boot", reason))
        await until(lambda: len(gate.held) == 2)
        gate.signer.answers.clear()
        # Asked for again, as signed now, it is taken up.
        shown = await ended(net, path)
        while shown["status"] in ("Executing", "Failed"):
            shown = await ended(net, path)
        assert shown["status"] == "Signed"
