"""Ceremonies: who may report, what a silent, lost or flooding member does, and that everything is bounded."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from appliance.coordinator import presigning
from appliance.coordinator.ceremonies import REPORTS_PER_MEMBER, Ceremonies
from appliance.coordinator.errors import CeremonyEnded, Rejected
from appliance.coordinator.presigning import BatchIncomplete, presign
from enclave import wire

C = (1, 2, 3)
SID = b"s" * 32
NONCES = tuple(wire.SignedNonce(index, "presign", bytes(32), bytes(32), bytes(64)) for index in C)


class Sent:
    """Orders that went out; `away` are not connected."""

    def __init__(self) -> None:
        self.orders: list[tuple[int, wire.OrderBody]] = []
        self.away: set[int] = set()

    def __call__(self, index: int, order: wire.OrderBody) -> bool:
        if index in self.away:
            return False
        self.orders.append((index, order))
        return True


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def ceremonies(sent: Sent) -> Ceremonies:
    numbers = itertools.count(1)
    return Ceremonies(sent, lambda count: next(numbers).to_bytes(count, "big"), max_ceremonies=2)


def done(ceremony: bytes, epoch: int = 1) -> wire.SetupDone:
    return wire.SetupDone(ceremony, epoch)


async def test_one_report_of_each_member_is_collected(ceremonies: Ceremonies) -> None:
    with ceremonies.open(C) as ceremony:
        for index in (3, 1, 2):
            assert ceremonies.on_report(index, done(ceremony.id, index))
        got = await ceremony.one_each(wire.SetupDone, 5)
    assert {index: report.epoch for index, report in got.items()} == {1: 1, 2: 2, 3: 3}


async def test_reports_of_strangers_and_of_ended_ceremonies_are_not_taken(ceremonies: Ceremonies) -> None:
    with ceremonies.open(C) as ceremony:
        assert not ceremonies.on_report(4, done(ceremony.id))
        assert not ceremonies.on_report(1, done(b"x" * 16))
    assert not ceremonies.on_report(1, done(ceremony.id))
    assert len(ceremonies) == 0


async def test_a_time_out_names_who_is_silent(ceremonies: Ceremonies) -> None:
    with ceremonies.open(C) as ceremony:
        ceremonies.on_report(1, done(ceremony.id))
        with pytest.raises(CeremonyEnded, match="timeout: no answer in time from signer 2, 3"):
            await ceremony.one_each(wire.SetupDone, 0.01)


async def test_quiet_reports_are_given_together_and_any_other_at_once(ceremonies: Ceremonies) -> None:
    with ceremonies.open(C) as ceremony:
        deadline_s = asyncio.get_running_loop().time() + 10
        task = asyncio.create_task(ceremony.several(deadline_s, C, wire.SetupDone))
        for index in (1, 2):
            ceremonies.on_report(index, done(ceremony.id))
            await asyncio.wait([task], timeout=0.01)
            assert not task.done()
        ceremonies.on_report(3, done(ceremony.id))
        assert await task == [(index, done(ceremony.id)) for index in C]
        task = asyncio.create_task(ceremony.several(deadline_s, C, wire.SetupDone))
        ceremonies.on_report(2, done(ceremony.id))
        ceremonies.on_report(3, wire.OrderRefused(ceremony.id, "no"))
        assert await task == [(2, done(ceremony.id)), (3, wire.OrderRefused(ceremony.id, "no"))]


async def test_what_came_before_a_member_was_lost_is_given_first(ceremonies: Ceremonies) -> None:
    with ceremonies.open(C) as ceremony:
        deadline_s = asyncio.get_running_loop().time() + 10
        ceremonies.on_report(1, done(ceremony.id))
        ceremonies.on_report(2, done(ceremony.id))
        ceremonies.on_lost(3)
        assert await ceremony.several(deadline_s, C, wire.SetupDone) == [(index, done(ceremony.id)) for index in (1, 2)]
        # Nobody waits for the rest: it is there.
        with pytest.raises(CeremonyEnded, match="signer 3 has disconnected"):
            await ceremony.several(0.0, (3,), wire.SetupDone)


async def test_who_repeats_a_quiet_report_too_often_is_a_flood_at_once(ceremonies: Ceremonies) -> None:
    with ceremonies.open(C) as ceremony:
        task = asyncio.create_task(ceremony.several(asyncio.get_running_loop().time() + 10, range(99), wire.SetupDone))
        for _ in range(REPORTS_PER_MEMBER + 1):
            await asyncio.sleep(0)
            ceremonies.on_report(1, done(ceremony.id))
        with pytest.raises(CeremonyEnded, match="flood"):
            await task


async def test_a_lost_member_ends_its_ceremonies_alone(ceremonies: Ceremonies) -> None:
    with ceremonies.open(C) as first, ceremonies.open((1, 2, 4)) as second:
        ceremonies.on_lost(3)
        with pytest.raises(CeremonyEnded, match="signer 3 has disconnected") as caught:
            await first.one_each(wire.SetupDone, 5)
        assert caught.value.signer == 3
        for index in (1, 2, 4):
            ceremonies.on_report(index, done(second.id))
        assert len(await second.one_each(wire.SetupDone, 5)) == 3


async def test_an_order_to_who_is_away_ends_the_ceremony(ceremonies: Ceremonies, sent: Sent) -> None:
    sent.away = {2}
    with ceremonies.open(C) as ceremony, pytest.raises(CeremonyEnded, match="signer-away"):
        ceremony.order_all(wire.PrepareOrder(ceremony.id, "setup"))


async def test_a_flood_ends_the_ceremony_and_takes_no_memory(ceremonies: Ceremonies) -> None:
    with ceremonies.open(C) as ceremony:
        for _ in range(10 * REPORTS_PER_MEMBER * len(C)):
            ceremonies.on_report(1, done(ceremony.id))
        assert len(ceremony._inbox) == REPORTS_PER_MEMBER
        with pytest.raises(CeremonyEnded, match="flood"):
            await ceremony.one_each(wire.SetupDone, 5)


async def test_who_floods_or_is_lost_can_be_dropped_and_the_others_are_heard(ceremonies: Ceremonies) -> None:
    with ceremonies.open(C) as ceremony:
        for _ in range(10 * REPORTS_PER_MEMBER):
            ceremonies.on_report(1, done(ceremony.id))
        ceremonies.on_report(2, done(ceremony.id))
        loop = asyncio.get_running_loop()
        with pytest.raises(CeremonyEnded, match="flood") as caught:
            await ceremony.next(loop.time() + 5, C)
        ceremony.drop(caught.value.signer)
        ceremonies.on_report(1, done(ceremony.id))
        assert await ceremony.next(loop.time() + 5, C) == (2, done(ceremony.id))
        ceremonies.on_lost(3)
        with pytest.raises(CeremonyEnded, match="signer 3 has disconnected"):
            await ceremony.next(loop.time() + 5, C)


async def test_the_number_of_ceremonies_is_bounded(ceremonies: Ceremonies) -> None:
    with ceremonies.open(C), ceremonies.open(C):
        with pytest.raises(CeremonyEnded, match="busy"), ceremonies.open(C):
            pass
        assert len(ceremonies) == 2


@pytest.mark.parametrize(
    ("report", "error", "text"),
    [
        (wire.OrderRefused(bytes(16), "no link"), CeremonyEnded, "order-refused: no link"),
        (wire.CeremonyFailed(bytes(16), "peer", "3.4", "T", (2,), ()), CeremonyEnded, "ceremony/peer: step 3.4: T"),
        (wire.OnlineRefused(bytes(16), "expired", False), CeremonyEnded, "online-refused: expired"),
        (wire.RequestRefused(bytes(16), "unavailable", "hsm"), CeremonyEnded, "unavailable: hsm"),
        (wire.RequestRefused(bytes(16), "gate", "no"), Rejected, "gate: no"),
        (wire.GatePending(bytes(16), 1), CeremonyEnded, "unexpected-report: GatePending was not due"),
    ],
)
async def test_every_other_report_is_an_error_of_its_signer(
    ceremonies: Ceremonies, report: wire.ReportBody, error: type[Exception], text: str
) -> None:
    with ceremonies.open(C) as ceremony:
        ceremony.put(2, report)
        with pytest.raises(error) as caught:
            await ceremony.one_each(wire.SetupDone, 5)
    assert (str(caught.value), caught.value.signer) == (text, 2)  # type: ignore[attr-defined]


async def test_a_batch_that_one_member_failed_names_its_holders(
    ceremonies: Ceremonies, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presigning, "SETTLE_UNPROVEN_S", 0.05)
    task = asyncio.create_task(presign(ceremonies, C, 4, NONCES))
    ceremony = (1).to_bytes(16, "big")
    await asyncio.sleep(0)
    ceremonies.on_report(3, wire.PresignDone(ceremony, SID, C, 4))
    ceremonies.on_report(1, wire.CeremonyFailed(ceremony, "timeout", "3.5", "silence", (), (2,)))
    with pytest.raises(BatchIncomplete) as caught:
        await task
    assert (caught.value.sid, caught.value.holders) == (SID, (3,))
    assert sent.orders[-3:] == [(index, wire.AbandonOrder(ceremony)) for index in C]


def silence(*suspects: int, kind: str = "timeout", culprits: tuple[int, ...] = ()) -> wire.CeremonyFailed:
    return wire.CeremonyFailed((1).to_bytes(16, "big"), kind, "", "silence", culprits, suspects)


@pytest.mark.parametrize(
    ("reports", "suspects"),
    [
        # 2 is silent; it lets 1 wait alone, so that 1 lets 3 wait; it says that 1 was silent, alone and beside others.
        ({1: silence(2), 3: silence(2)}, {2}),
        ({1: silence(2), 3: silence(1), 2: silence(1)}, {1, 2}),
        ({2: silence(1)}, {1, 2}),
        ({2: silence(1), 1: silence(2), 3: silence(2)}, {1, 2}),
        ({1: silence(2, kind="link")}, {1, 2}),
        # Blame found no culprit, and found one.
        ({1: silence(2, kind="peer"), 3: silence(2, kind="peer")}, {2}),
        ({1: silence(2, kind="peer"), 3: silence(kind="peer", culprits=(2,))}, set()),
        # Words about strangers, and none.
        ({1: silence(4), 3: silence(4)}, set()),
        ({1: silence(), 3: silence()}, set()),
    ],
)
async def test_who_may_be_to_blame_for_a_batch_that_came_to_no_end(
    ceremonies: Ceremonies,
    reports: dict[int, wire.CeremonyFailed],
    suspects: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for patience in ("SETTLE_UNPROVEN_S", "SETTLE_TIMEOUT_S"):
        monkeypatch.setattr(presigning, patience, 0.05)
    told: list[frozenset[int]] = []
    task = asyncio.create_task(presign(ceremonies, C, 4, NONCES, told.append))
    await asyncio.sleep(0)
    for index, report in reports.items():
        ceremonies.on_report(index, report)
    with pytest.raises(CeremonyEnded):
        await task
    assert told == ([frozenset(suspects)] if suspects else [])


async def test_a_signer_that_is_gone_explains_what_others_say_of_its_links(ceremonies: Ceremonies) -> None:
    told: list[frozenset[int]] = []
    task = asyncio.create_task(presign(ceremonies, C, 4, NONCES, told.append))
    await asyncio.sleep(0)
    ceremonies.on_report(1, silence(2, kind="link"))
    await asyncio.sleep(0)
    ceremonies.on_lost(2)
    with pytest.raises(CeremonyEnded):
        await task
    assert told == []


@pytest.mark.parametrize(
    "report",
    [
        wire.PresignDone((1).to_bytes(16, "big"), SID, (1, 2, 4), 4),
        wire.PresignDone((1).to_bytes(16, "big"), SID, C, 5),
        wire.PresignDone((1).to_bytes(16, "big"), b"x" * 32, C, 4),
    ],
    ids=["committee", "count", "sid"],
)
async def test_a_batch_that_was_not_ordered_is_not_taken(ceremonies: Ceremonies, report: wire.PresignDone) -> None:
    task = asyncio.create_task(presign(ceremonies, C, 4, NONCES))
    await asyncio.sleep(0)
    for index in (1, 2):
        ceremonies.on_report(index, wire.PresignDone(report.ceremony, SID, C, 4))
    ceremonies.on_report(3, report)
    with pytest.raises(CeremonyEnded, match="unexpected-report"):
        await task
