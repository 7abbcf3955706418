"""SPEC 7.8: the peers' time, whatever `t` of them say; what is refused without it; what operators are told."""

from __future__ import annotations

import base64
import itertools

import pytest

from enclave.clock_watch import Clocks
from enclave.peer_clocks import MAX_CLOCKS_APART_S, PeerClocks, honest_bounds
from policies.roster import Roster, RosterSigner
from tests.fakes.enclaves import Clock, SoftwareHsm

LIES = (-1e9, -40.0, 0.0, 40.0, 1e9)


@pytest.mark.parametrize("t", [1, 2, 3])
def test_the_bounds_are_within_the_honest_clocks_whatever_t_peers_say(t: int) -> None:
    honest_clocks = (-5.0, 0.0, 5.0, 1.0, -2.0, 3.0, 4.0)
    for k in range(t + 1, 2 * t + 2):
        for liars in range(min(t, k) + 1):
            honest = honest_clocks[: k - liars]
            for lies in itertools.combinations_with_replacement(LIES, liars):
                bounds = honest_bounds([*honest, *lies], t)
                assert bounds is not None
                earliest, latest = bounds
                assert earliest >= min(honest)
                assert latest <= max(honest)
                if k == 2 * t + 1:
                    assert earliest <= latest


def test_too_few_clocks_say_nothing() -> None:
    for t in (1, 2, 3):
        assert honest_bounds([0.0] * t, t) is None
        assert honest_bounds([0.0] * (t + 1), t) == (0.0, 0.0)


class Desk:
    """The clocks of the peers of signer 1, which are given as what they are ahead of its own."""

    def __init__(self, n: int, t: int) -> None:
        signers = tuple(
            RosterSigner(j, f"signer-{j}", "Tests", base64.b64encode(SoftwareHsm().identity_point).decode())
            for j in range(1, n + 1)
        )
        self.wall, self.elapsed = Clock(), Clock()
        self.elapsed.now_s = 1000.0
        self.agreed: list[float] = []
        roster = Roster(1, "testnet", t, signers)
        self.slewed_s = 500.0
        self.clocks = PeerClocks(roster, self.wall, self.elapsed, lambda: self.slewed_s, self.on_agreed)

    def on_agreed(self, peers_s: float) -> None:
        assert self.clocks.doubt == ""
        self.agreed.append(peers_s + self.elapsed() - self.wall())

    def up(self, peer: int, ahead_s: float, coordinator: str = "main") -> None:
        self.clocks.on_link(coordinator, peer, self.wall() + ahead_s - self.elapsed())

    def down(self, peer: int, coordinator: str = "main") -> None:
        self.clocks.on_link(coordinator, peer, None)


def test_the_peers_agree_once_enough_of_them_do() -> None:
    desk = Desk(5, 2)
    assert desk.clocks.doubt.endswith("is told by 3 peers, and there is a link with 0: see that they are online")
    desk.up(2, 1.0)
    desk.up(3, 2.0)
    assert desk.agreed == []
    desk.up(4, 900.0)
    assert desk.clocks.doubt == (
        "for how long this enclave was away is not sure: its peers' clocks are 899 s apart (this one is 900 s behind "
        "signer-4, 2 s behind signer-3, 1 s behind signer-2). Set the wrong one right"
    )
    # One that tells the truth is enough: two of four may lie.
    desk.up(5, 20.0)
    assert desk.agreed == [2.0]
    # Once they have agreed it stays, with whom there is no link any more or not.
    for peer in (2, 3, 4):
        desk.down(peer)
    assert (desk.clocks.doubt, desk.agreed) == ("", [2.0])


def test_the_latest_of_a_peers_hellos_counts() -> None:
    desk = Desk(3, 1)
    desk.up(2, -25.0, "slow")
    desk.up(3, 0.0)
    assert desk.agreed == [-25.0]
    desk.up(2, 0.0, "quick")
    assert desk.agreed == [-25.0, 0.0]
    desk.down(2, "quick")
    assert desk.agreed == [-25.0, 0.0, -25.0]


@pytest.mark.parametrize("apart_s", [MAX_CLOCKS_APART_S, MAX_CLOCKS_APART_S + 1])
def test_in_two_of_three_one_wrong_clock_is_noticed(apart_s: float) -> None:
    for ahead_s in (apart_s, -apart_s):
        desk = Desk(3, 1)
        desk.up(2, 0.0)
        desk.up(3, ahead_s)
        assert (desk.agreed == [min(0.0, ahead_s)]) == (apart_s <= MAX_CLOCKS_APART_S) == (desk.clocks.doubt == "")


def test_this_machines_clock_is_judged_by_its_peers() -> None:
    desk = Desk(4, 1)
    assert "compared with those of 2 peers, and there is a link with 0" in desk.clocks.wall_doubt()
    for peer in (2, 3, 4):
        desk.up(peer, 0.0)
    for wrong_s, sound in ((0, True), (30, True), (31, False), (-30, True), (-31, False)):
        desk.wall.now_s += wrong_s
        assert (desk.clocks.wall_doubt() == "") == sound
        desk.wall.now_s -= wrong_s
    # Time passes for all of them.
    desk.wall.now_s += 9999
    desk.elapsed.now_s += 9999
    assert desk.clocks.wall_doubt() == ""
    assert desk.clocks.gauges() == {f"clock_off|signer-{peer}|ahead": 0 for peer in (2, 3, 4)}
    desk.wall.now_s += 90
    desk.up(4, 100.0)
    assert desk.clocks.gauges() == {
        "clock_off|signer-2|ahead": 90,
        "clock_off|signer-3|ahead": 90,
        "clock_off|signer-4|behind": 100,
    }
    assert desk.clocks.wall_doubt() == (
        "this machine's clock does not agree with its peers' (this one is 100 s behind signer-4, 90 s ahead of "
        "signer-2, 90 s ahead of signer-3). Set the wrong one right"
    )


def test_clocks_that_were_slewed_outdate_what_peers_said_once() -> None:
    desk = Desk(3, 1)
    for slewed_s, outdated in ((519, False), (521, True), (521, False), (540, False), (500, True), (500, False)):
        desk.slewed_s = slewed_s
        assert desk.clocks.outdated() == outdated


def test_a_kernel_tells_by_how_much_it_slews() -> None:
    assert abs(Clocks().slewed() - Clocks().slewed()) < 1.0
