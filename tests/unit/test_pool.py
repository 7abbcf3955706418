"""The pool: every presignature once, within bounds, and gone with its batch. A stateful test has the last word."""

from __future__ import annotations

import hashlib
import tracemalloc

import pytest
from coincurve import PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from enclave import pool as module
from enclave.errors import Refused
from enclave.pool import BatchKey, PresignaturePool, UnknownPresignatureError
from enclave.protocol.sign import Presignature
from enclave.wire import BatchState, PresignatureName

C = (1, 2, 3)
SID = b"s" * 32
BOOTS = {j: bytes([j]) * 32 for j in C}
POINTS = [PrivateKey((k + 1).to_bytes(32, "big")).public_key.format(compressed=False)[1:] for k in range(40)]


def key(coordinator: str = "main", epoch: int = 1, committee: tuple[int, ...] = C) -> BatchKey:
    return BatchKey(coordinator, committee, epoch, BOOTS)


def batch(count: int, start: int = 1000) -> tuple[bytes, bytes]:
    """Shares `start + l` and some points."""
    shares = b"".join((start + l).to_bytes(32, "big") for l in range(1, count + 1))
    return shares, b"".join(POINTS[:count])


def filled(count: int = 10, sid: bytes = SID, **of: object) -> PresignaturePool:
    pool = PresignaturePool()
    pool.insert(sid, key(**of), *batch(count))
    return pool


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 40])
def test_each_is_taken_once_in_any_order(count: int) -> None:
    pool = filled(count)
    for number, l in enumerate(sorted(range(1, count + 1), key=lambda l: hashlib.sha256(bytes([l])).digest())):
        name = PresignatureName(SID, l)
        assert len(pool) == count - number
        assert pool.holds(name, C, 1)
        assert pool.take(name, C, 1) == Presignature(1000 + l, POINTS[l - 1])
        assert not pool.holds(name, C, 1)
        with pytest.raises(UnknownPresignatureError):
            pool.take(name, C, 1)
    assert len(pool) == 0
    assert list(pool.states("main")) == []


def test_holding_reserves_nothing_and_takes_nothing() -> None:
    pool = filled(1)
    assert all(pool.holds(PresignatureName(SID, 1), C, 1) for _ in range(3))
    assert len(pool) == 1


@pytest.mark.parametrize(
    ("name", "committee", "epoch"),
    [
        (PresignatureName(SID, 0), C, 1),
        (PresignatureName(SID, -1), C, 1),
        (PresignatureName(SID, 11), C, 1),
        (PresignatureName(SID, 17), C, 1),
        (PresignatureName(b"x" * 32, 1), C, 1),
        (PresignatureName(SID, 1), (1, 2, 4), 1),
        (PresignatureName(SID, 1), (3, 2, 1), 1),
        (PresignatureName(SID, 1), C, 2),
        (PresignatureName(SID, 1), C, 0),
    ],
)
def test_what_is_not_held_is_unknown_and_costs_nothing(
    name: PresignatureName, committee: tuple[int, ...], epoch: int
) -> None:
    pool = filled(10)
    assert not pool.holds(name, committee, epoch)
    with pytest.raises(UnknownPresignatureError) as caught:
        pool.take(name, committee, epoch)
    assert caught.value.rule == "presignature"
    assert len(pool) == 10


@pytest.mark.parametrize("numbers", [(1, 2, 11), (1, 2, 1), (3, 3), (0, 1)])
def test_all_are_taken_or_none(numbers: tuple[int, ...]) -> None:
    pool = filled()
    with pytest.raises(UnknownPresignatureError):
        pool.take_all([PresignatureName(SID, l) for l in numbers], C, 1)
    with pytest.raises(UnknownPresignatureError):
        pool.take_all([PresignatureName(SID, 1)], C, 2)
    assert len(pool) == 10
    assert pool.take_all([PresignatureName(SID, l) for l in (7, 2)], C, 1) == [
        Presignature(1000 + l, POINTS[l - 1]) for l in (7, 2)
    ]
    assert len(pool) == 8
    with pytest.raises(UnknownPresignatureError):
        pool.take_all([PresignatureName(SID, l) for l in (1, 7)], C, 1)
    assert pool.holds(PresignatureName(SID, 1), C, 1)


def test_the_slot_is_empty_before_the_presignature_is_handed_out() -> None:
    pool = filled(2)
    inside = pool._batches[SID]
    pool.take(PresignatureName(SID, 2), C, 1)
    assert bytes(inside.inverse_shares) == (1001).to_bytes(32, "big") + bytes(32)


def test_a_sid_comes_once() -> None:
    pool = filled(3)
    with pytest.raises(Refused, match="this sid is in the pool"):
        pool.insert(SID, key(), *batch(3))
    assert len(pool) == 3


def test_a_dropped_batch_is_wiped_and_counted() -> None:
    pool = filled(10)
    inside = pool._batches[SID]
    pool.take(PresignatureName(SID, 4), C, 1)
    assert pool.drop(lambda sid, held: True) == 9
    assert not any(inside.inverse_shares)
    assert len(pool) == 0
    with pytest.raises(UnknownPresignatureError):
        pool.take(PresignatureName(SID, 5), C, 1)
    assert pool.drop(lambda sid, held: True) == 0


def test_a_reboot_of_one_member_drops_its_batches_alone() -> None:
    pool = PresignaturePool()
    pool.insert(b"a" * 32, BatchKey("main", (1, 2, 3), 1, BOOTS), *batch(3))
    pool.insert(b"b" * 32, BatchKey("main", (1, 3, 4), 1, {**BOOTS, 4: b"4" * 32}), *batch(4))
    pool.insert(b"c" * 32, BatchKey("main", (1, 2, 3), 1, {**BOOTS, 2: b"new".ljust(32)}), *batch(5))
    lost = pool.drop(lambda sid, held: 2 in held.committee and held.boots[2] != b"new".ljust(32))
    assert lost == 3
    assert [state.sid for state in pool.states("main")] == [b"b" * 32, b"c" * 32]


def test_a_new_epoch_drops_the_older_ones() -> None:
    pool = filled(3, epoch=1)
    pool.insert(b"n" * 32, key(epoch=2), *batch(4))
    assert pool.drop(lambda sid, held: held.prss_epoch < 2) == 3
    assert len(pool) == 4


def test_states_are_per_coordinator_and_say_what_is_left() -> None:
    pool = filled(10)
    pool.insert(b"o" * 32, key("other"), *batch(3))
    for l in (1, 9):
        pool.take(PresignatureName(SID, l), C, 1)
    assert list(pool.states("main")) == [BatchState(SID, C, 10, bytes([0b11111110, 0b10]))]
    assert list(pool.states("other")) == [BatchState(b"o" * 32, C, 3, bytes([0b111]))]
    assert list(pool.states("nobody")) == []


def test_the_number_of_presignatures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PRESIGNATURES", 12)
    pool = filled(10)
    pool.check_room(2)
    with pytest.raises(Refused, match="the pool is full"):
        pool.check_room(3)
    pool.take(PresignatureName(SID, 1), C, 1)
    pool.check_room(3)


def test_the_number_of_batches_is_bounded() -> None:
    pool = PresignaturePool()
    for number in range(module.MAX_BATCHES):
        pool.check_room(1)
        pool.insert(number.to_bytes(32, "big"), key(), *batch(1))
    with pytest.raises(Refused, match="the pool is full"):
        pool.check_room(1)


class Taking(RuleBasedStateMachine):
    """No name is ever given out twice, whatever else happens; what the pool holds is what the model says."""

    batches = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PresignaturePool()
        self.serial = 0
        self.held: dict[tuple[bytes, int], tuple[tuple[int, ...], int, int]] = {}
        self.given: set[tuple[bytes, int]] = set()
        self.shares: set[int] = set()

    @rule(target=batches, count=st.integers(1, 20), epoch=st.integers(1, 2), far=st.booleans())
    def insert(self, count: int, epoch: int, far: bool) -> bytes:
        self.serial += 1
        sid, committee = self.serial.to_bytes(32, "big"), (1, 3, 4) if far else C
        self.pool.insert(sid, key(epoch=epoch, committee=committee), *batch(count, 1000 * self.serial))
        for l in range(1, count + 1):
            self.held[sid, l] = (committee, epoch, 1000 * self.serial + l)
        return sid

    @rule(sid=batches)
    def insert_again(self, sid: bytes) -> None:
        if any(held == sid for held, _ in self.held):
            with pytest.raises(Refused):
                self.pool.insert(sid, key(), *batch(2))

    @rule(sid=batches, l=st.integers(0, 21), far=st.booleans(), epoch=st.integers(1, 2))
    def take(self, sid: bytes, l: int, far: bool, epoch: int) -> None:
        name, committee = PresignatureName(sid, l), (1, 3, 4) if far else C
        expected = self.held.get((sid, l))
        if expected is None or expected[:2] != (committee, epoch):
            assert not self.pool.holds(name, committee, epoch)
            with pytest.raises(UnknownPresignatureError):
                self.pool.take(name, committee, epoch)
            return
        taken = self.pool.take(name, committee, epoch)
        assert (sid, l) not in self.given
        assert taken.inverse_share == expected[2] not in self.shares
        self.given.add((sid, l))
        self.shares.add(taken.inverse_share)
        del self.held[sid, l]

    @rule(sid=consumes(batches))
    def drop_one(self, sid: bytes) -> None:
        lost = [each for each in self.held if each[0] == sid]
        assert self.pool.drop(lambda each, held: each == sid) == len(lost)
        for each in lost:
            del self.held[each]

    @rule(epoch=st.integers(1, 2))
    def drop_an_epoch(self, epoch: int) -> None:
        lost = [each for each, held in self.held.items() if held[1] == epoch]
        assert self.pool.drop(lambda sid, held: held.prss_epoch == epoch) == len(lost)
        for each in lost:
            del self.held[each]

    @invariant()
    def the_pool_is_the_model(self) -> None:
        assert len(self.pool) == len(self.held)
        left = {
            (state.sid, l)
            for state in self.pool.states("main")
            for l in range(1, state.count + 1)
            if state.remaining[(l - 1) // 8] >> (l - 1) % 8 & 1
        }
        assert left == set(self.held)
        assert not left & self.given


Taking.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestNoNameIsGivenOutTwice = Taking.TestCase


def test_a_presignature_takes_a_hundred_bytes_of_memory() -> None:
    pool, count = PresignaturePool(), 10_000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(10):
            pool.insert(bytes([number]) * 32, key(), bytes(32 * count), bytes(64 * count))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(pool) == 10 * count
    # A share, a point and a bit; the whole of 100,000 is to stay far below 60 MB.
    assert 96 <= (after - before) / len(pool) < 100
