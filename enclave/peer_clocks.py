"""SPEC 7.8: what the clocks of the linked peers say, and how far this machine's clock is from them."""

from __future__ import annotations

from collections.abc import Callable

from policies.roster import Roster
from policies.signed_requests import CLOCK_SKEW_S

# As far as requests and authorizations bear.
MAX_CLOCKS_APART_S = float(CLOCK_SKEW_S)
# Slewed by more, what hellos said is extrapolated by a clock that did not keep pace with the peers'.
MAX_SLEWED_S = 20.0
MAX_NAMED = 3


class PeerClocks:
    """The clocks of the peers with which there is a link, each in seconds ahead of the elapsed time here. At most `t`
    of them lie."""

    def __init__(
        self,
        roster: Roster,
        wall: Callable[[], float],
        elapsed: Callable[[], float],
        slewed: Callable[[], float],
        agreed: Callable[[float], None],
    ) -> None:
        """`elapsed`: as for the counting clock; `slewed`: by how many seconds the kernel has let it and the wall clock
        run faster to set them right. `agreed(peers_s)`: the peers' time, ahead of the elapsed time, whenever their
        clocks agree; first after `doubt` is empty."""
        self._roster, self._wall, self._elapsed, self._agreed = roster, wall, elapsed, agreed
        self._slewed, self._slewed_s = slewed, slewed()
        self._heard: dict[tuple[str, int], float] = {}
        self._clocks: dict[int, float] = {}
        # The (t+1)-th earliest and the (t+1)-th latest clock; None while fewer than t+1 peers are linked.
        self._bounds: tuple[float, float] | None = None
        self._have_agreed = False

    def on_link(self, coordinator: str, peer: int, clock_s: float | None) -> None:
        """A link came up, whose hello said this of the peer's clock (less the elapsed time); or went down (None)."""
        if clock_s is None:
            self._heard.pop((coordinator, peer), None)
        else:
            self._heard[coordinator, peer] = clock_s
        self._clocks = {}
        for (_, index), said_s in self._heard.items():
            # A hello only ever grows older on its way: the latest is the closest.
            self._clocks[index] = max(said_s, self._clocks.get(index, said_s))
        self._bounds = honest_bounds(list(self._clocks.values()), self._roster.tolerate)
        if self._bounds is not None and _apart(self._bounds) <= MAX_CLOCKS_APART_S:
            self._have_agreed = True
            self._agreed(self._bounds[1])

    def outdated(self) -> bool:
        """Whether the clocks were slewed so far that links are to be made anew; once for each time."""
        slewed_s = self._slewed()
        if abs(slewed_s - self._slewed_s) <= MAX_SLEWED_S:
            return False
        self._slewed_s = slewed_s
        return True

    @property
    def doubt(self) -> str:
        """Why the peers' time is not known in this boot; empty once their clocks have agreed."""
        if self._have_agreed:
            return ""
        if self._bounds is None:
            return f"for how long this enclave was away is told by {self._roster.tolerate + 1} peers, {self._linked()}"
        told = f"its peers' clocks are {_apart(self._bounds):.0f} s apart ({self._named()})"
        return f"for how long this enclave was away is not sure: {told}. Set the wrong one right"

    def wall_doubt(self) -> str:
        """Why this machine's clock is not to be believed now; empty where it is right by its peers' clocks."""
        if self._bounds is None:
            return f"this machine's clock is compared with those of {self._roster.tolerate + 1} peers, {self._linked()}"
        earliest_s, latest_s = self._bounds
        wall_s = self._wall() - self._elapsed()
        if earliest_s - MAX_CLOCKS_APART_S <= wall_s <= latest_s + MAX_CLOCKS_APART_S:
            return ""
        return f"this machine's clock does not agree with its peers' ({self._named()}). Set the wrong one right"

    def gauges(self) -> dict[str, int]:
        """By how many seconds this machine's clock is ahead of each linked peer's, or behind it."""
        return {
            f"clock_off|{self._roster.signer(peer).name}|{'ahead' if off_s >= 0 else 'behind'}": abs(off_s)
            for peer, off_s in self._off_s().items()
        }

    def _off_s(self) -> dict[int, int]:
        wall_s = self._wall() - self._elapsed()
        return {peer: round(wall_s - clock_s) for peer, clock_s in sorted(self._clocks.items())}

    def _linked(self) -> str:
        return f"and there is a link with {len(self._clocks)}: see that they are online"

    def _named(self) -> str:
        """The peers whose clocks are furthest from this machine's."""
        furthest = sorted(self._off_s().items(), key=lambda item: -abs(item[1]))[:MAX_NAMED]
        told = (
            f"{abs(off_s)} s {'ahead of' if off_s >= 0 else 'behind'} {self._roster.signer(peer).name}"
            for peer, off_s in furthest
        )
        return f"this one is {', '.join(told)}"


def honest_bounds(clocks: list[float], tolerate: int) -> tuple[float, float] | None:
    """SPEC 7.8: the (t+1)-th earliest and the (t+1)-th latest. The first is not before the earliest honest clock, the
    second not after the latest one, whatever `tolerate` of them say. None for fewer than t+1."""
    if len(clocks) <= tolerate:
        return None
    ordered = sorted(clocks)
    return ordered[tolerate], ordered[-1 - tolerate]


def _apart(bounds: tuple[float, float]) -> float:
    """By how much liars may have them apart; where `2t+1` clocks are known, not at all."""
    earliest_s, latest_s = bounds
    return max(0.0, earliest_s - latest_s)
