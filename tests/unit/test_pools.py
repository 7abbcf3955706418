"""Pools: only what all members hold is named, nothing is named twice, lost batches are forgotten."""

from __future__ import annotations

import pytest

from appliance.coordinator.changes import Changes
from appliance.coordinator.errors import CeremonyEnded
from appliance.coordinator.pools import Pools, Reservation
from enclave import wire

SID, OTHER = b"s" * 32, b"o" * 32
C = (1, 2, 3)


@pytest.fixture
def pools() -> Pools:
    made = Pools(low=2, changes=Changes())
    for member in (1, 2, 3, 4):
        made.on_pools(member, wire.Pools(()))
    return made


@pytest.fixture
def fresh() -> Pools:
    """As after a start: nobody has said anything."""
    return Pools(low=2, changes=Changes())


def said(*batches: tuple[bytes, tuple[int, ...], int, int]) -> wire.Pools:
    """A report: (sid, committee, count, remaining bits) each."""
    return wire.Pools(
        tuple(
            wire.BatchState(sid, committee, count, bits.to_bytes((count + 7) // 8, "little"))
            for sid, committee, count, bits in batches
        )
    )


def test_names_are_given_in_order_and_once(pools: Pools) -> None:
    pools.add(SID, C, 3)
    assert [pools.take(C) for _ in range(3)] == [wire.PresignatureName(SID, l) for l in (1, 2, 3)]
    with pytest.raises(CeremonyEnded, match="no-presignatures"):
        pools.take(C)


def test_the_oldest_batch_comes_first(pools: Pools) -> None:
    pools.add(SID, C, 1)
    pools.add(OTHER, C, 1)
    assert [pools.take(C).sid, pools.take(C).sid] == [SID, OTHER]


def test_another_committee_has_its_own_pool(pools: Pools) -> None:
    pools.add(SID, (1, 2, 4), 5)
    assert (pools.available(C), pools.available((1, 2, 4))) == (0, 5)


def test_what_was_given_back_is_named_again_and_what_was_spent_is_not(pools: Pools) -> None:
    pools.add(SID, C, 3)
    first, second = Reservation(pools, C), Reservation(pools, C)
    first.spend()
    first.release()
    second.release()
    assert [pools.take(C).index for _ in range(2)] == [2, 3]


def test_a_spent_name_stays_spent_when_a_late_report_still_shows_it(pools: Pools) -> None:
    pools.add(SID, C, 2)
    reservation = Reservation(pools, C)
    reservation.spend()
    for member in C:
        assert pools.on_pools(member, said((SID, C, 2, 0b11))) == []
    assert (pools.available(C), pools.take(C).index) == (1, 2)


def test_pools_are_learned_again_as_what_all_members_hold(fresh: Pools) -> None:
    pools = fresh
    for member, bits in ((1, 0b1110), (2, 0b1011)):
        pools.on_pools(member, said((SID, C, 4, bits)))
        assert pools.available(C) == 0
    pools.on_pools(3, said((SID, C, 4, 0b1111)))
    assert [pools.take(C).index for _ in range(2)] == [2, 4]
    assert pools.available(C) == 0


def test_nothing_is_named_while_a_member_has_not_said_what_it_holds(pools: Pools) -> None:
    pools.add(SID, C, 4)
    pools.forget_member(2)
    assert pools.available(C) == 0
    with pytest.raises(CeremonyEnded):
        pools.take(C)
    pools.on_pools(2, said((SID, C, 4, 0b1000)))
    assert pools.take(C).index == 4


def test_a_batch_that_a_member_lost_is_forgotten_by_the_others(pools: Pools) -> None:
    pools.add(SID, C, 4)
    assert pools.on_pools(2, said()) == [(SID, (1, 3))]
    assert pools.available(C) == 0


def test_a_batch_learned_after_a_restart_that_one_member_lost_is_forgotten(fresh: Pools) -> None:
    pools = fresh
    assert pools.on_pools(1, said((SID, C, 4, 0b1111))) == []
    assert pools.on_pools(2, said()) == [(SID, (1,))]
    assert pools.on_pools(3, said((SID, C, 4, 0b1111))) == [(SID, (3,))]
    assert pools.committees() == set()


def test_a_used_up_batch_is_dropped_and_nobody_is_told_to_forget_it(pools: Pools) -> None:
    pools.add(SID, C, 1)
    reservation = Reservation(pools, C)
    assert pools.on_pools(1, said()) == []
    reservation.spend()
    assert pools.committees() == set()


def test_an_unknown_name_is_replaced_and_never_named_again(pools: Pools) -> None:
    pools.add(SID, C, 2)
    reservation = Reservation(pools, C)
    reservation.rename(member=3)
    assert reservation.name.index == 2
    reservation.release()
    assert (pools.take(C).index, pools.available(C)) == (2, 0)


def test_a_rename_without_a_successor_ends_the_attempt(pools: Pools) -> None:
    pools.add(SID, C, 1)
    reservation = Reservation(pools, C)
    with pytest.raises(CeremonyEnded, match="no-presignatures"):
        reservation.rename(member=3)
    reservation.release()
    assert pools.available(C) == 0


@pytest.mark.parametrize(
    "report",
    [said((SID, (1, 2, 4), 4, 0b1111)), said((SID, C, 5, 0b1111)), said((OTHER, (1, 2, 4), 4, 0b1111))],
    ids=["other committee", "other count", "not a member"],
)
def test_a_report_that_contradicts_counts_as_not_holding(pools: Pools, report: wire.Pools) -> None:
    pools.add(SID, C, 4)
    assert pools.on_pools(3, report) == [(SID, (1, 2))]
    assert pools.committees() == set()


def test_bits_beyond_the_batch_are_cut_off(fresh: Pools) -> None:
    pools = fresh
    for member in C:
        pools.on_pools(member, said((SID, C, 3, 0b11111111)))
    assert pools.available(C) == 3


def test_a_batch_in_the_making_is_not_learned_from_reports(pools: Pools) -> None:
    pools.presigning(C, under_way=True)
    assert pools.on_pools(1, said((SID, C, 4, 0b1111))) == []
    assert pools.on_pools(2, said()) == []
    pools.add(SID, C, 4)
    pools.presigning(C, under_way=False)
    assert pools.available(C) == 4


def test_a_new_epoch_drops_everything(pools: Pools) -> None:
    pools.add(SID, C, 4)
    pools.drop_all()
    assert pools.available(C) == 0
