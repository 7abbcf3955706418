"""The signers as one network: who can sign together, and what a request waits for (`upkeep` keeps them able to)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from appliance.coordinator.ceremonies import Ceremonies
from appliance.coordinator.changes import Changes
from appliance.coordinator.config import PoolSettings
from appliance.coordinator.errors import CeremonyEnded
from appliance.coordinator.keybook import KeyBook
from appliance.coordinator.keygen import activate
from appliance.coordinator.pools import Pools
from appliance.coordinator.sessions import Signers
from appliance.coordinator.upkeep import Upkeep
from enclave import wire
from policies.roster import Roster

log = structlog.get_logger()


@dataclass(frozen=True)
class Shortage:
    """Why nothing can be signed now: what is `missing`, and what an operator does about it."""

    missing: str
    remedy: str


class Network:
    """Listens to the signers (`sessions.Listener`) and serves the requests (`signing.Network`)."""

    def __init__(
        self,
        roster: Roster,
        settings: PoolSettings,
        changes: Changes,
        keybook: KeyBook,
        random: Callable[[int], bytes],
    ) -> None:
        self._roster, self._settings, self._changes, self._keybook = roster, settings, changes, keybook
        self._random = random
        self.signers = Signers(roster, changes, self)
        self.ceremonies = Ceremonies(self.signers.order, random)
        self.pools = Pools(settings.low, changes)
        self._upkeep = Upkeep(self, roster, settings, changes, keybook)
        self._wanted: list[int] = []

    # --- what signers say ---

    def on_online(self, index: int) -> None:
        """Ask what it holds, and see to the keys it has not activated."""
        log.info("signer-online", signer=self.signers.name(index))
        self.pools.forget_member(index)
        self._upkeep.activate_at(index)
        self.resync((index,))

    def on_lost(self, index: int) -> None:
        """Its ceremonies end."""
        log.info("signer-lost", signer=self.signers.name(index))
        self.pools.forget_member(index)
        self._upkeep.on_lost(index)
        self.ceremonies.on_lost(index)

    def on_report(self, index: int, report: wire.ReportBody) -> None:
        """Pools and links are looked at here, everything else belongs to a ceremony."""
        match report:
            case wire.Pools():
                for sid, holders in self.pools.on_pools(index, report):
                    self.forget_batch(sid, holders)
            case wire.LinkReport(peer, up, reason):
                log.info("link", signer=self.signers.name(index), peer=peer, up=up, reason=reason)
            case _ if self.ceremonies.on_report(index, report):
                pass
            case wire.SetupDone():
                # Another coordinator's: what this signer held is gone (SPEC 1.6).
                self.resync((index,))
            case wire.PresignDone(_, sid):
                # Its ceremony has failed elsewhere meanwhile.
                self.forget_batch(sid, (index,))
            case _:
                log.info("report-dropped", signer=self.signers.name(index), report=type(report).__name__)

    # --- what requests need ---

    async def committee(self, timeout_s: float, count: int = 1) -> tuple[int, ...]:
        """The committee with most presignatures among those that can sign now, `count` of them at least.

        Raises `CeremonyEnded` where there is none in time, saying what is missing.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    change = self._changes.next()
                    best = max(self._candidates(), key=self.pools.available, default=())
                    if best and self.pools.available(best) >= count:
                        return best
                    await change.wait()
        except TimeoutError:
            raise CeremonyEnded("no-committee", self.trouble() or f"not {count} presignatures in time") from None

    async def committee_for_batch(self, timeout_s: float, count: int) -> tuple[int, ...]:
        """As `committee`; its pool is filled up to `count` where that is more than it is kept at."""
        self._wanted.append(count)
        self._changes.notify()
        try:
            return await self.committee(timeout_s, count)
        finally:
            self._wanted.remove(count)

    async def everybody(self, timeout_s: float) -> None:
        """Until all signers are linked. Raises `CeremonyEnded` where they aren't in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.signers.linked(self._roster.indices):
                    await self._changes.next().wait()
        except TimeoutError:
            raise CeremonyEnded("no-committee", self.trouble() or "the links came too late") from None

    async def activate_key(self, index: int, key_id: str) -> None:
        """Let signer `index` activate a pending key by its certificate. Raises `CeremonyEnded`, `Unavailable`."""
        key = self._keybook.get(key_id)
        if key is None:
            raise CeremonyEnded("key/pending", f"there is no certificate of {key_id}", index)
        await activate(self.ceremonies, index, key_id, key.certificate)
        await self._keybook.note_activated(key_id, index)

    def activate_later(self, members: Iterable[int]) -> None:
        """These signers have missed the activation of a key."""
        for index in set(members) & set(self.signers.online()):
            self._upkeep.activate_at(index)

    def resync(self, members: Sequence[int]) -> None:
        """Ask these signers which presignatures they hold."""
        for index in members:
            self.signers.order(index, wire.PoolsOrder(self._random(16)))

    def trouble(self) -> str:
        """Why there is no committee now; empty where there is one."""
        shortage = self.shortage()
        return shortage.missing if shortage else ""

    def shortage(self) -> Shortage | None:
        """Why there is no committee now; None where there is one."""
        roster, online = self._roster, self.signers.online()
        ready = self._candidates()
        if any(self.pools.available(committee) for committee in ready):
            return None
        if ready:
            return Shortage(
                "the pools of presignatures are empty; they are being filled",
                "wait for the first batch; if none comes, read the coordinator's log for presigning-failed",
            )
        away = ", ".join(signer.name for signer in roster.signers if signer.index not in online)
        if len(online) < roster.committee_size:
            return Shortage(
                f"{roster.committee_size} signers must be online; away: {away}",
                "start the signers that are away and see in their logs whether they reach this coordinator",
            )
        if not self.signers.linked(roster.indices):
            return Shortage(
                "the signers have not reached each other yet" + (f"; away: {away}" if away else ""),
                "wait some seconds; if it stays, see why in the lines link of the coordinator's log",
            )
        return Shortage(
            "the network's setup is under way",
            "wait some seconds; if it stays, read the coordinator's log for setup-failed",
        )

    @property
    def wanted(self) -> int:
        """How many presignatures the largest batch waits for, 0 where none does."""
        return max(self._wanted, default=0)

    async def run(self) -> None:
        """What keeps the signers able to sign, until cancelled."""
        await self._upkeep.run()

    def _candidates(self) -> list[tuple[int, ...]]:
        return [committee for committee in self.committees() if self.signers.ready(committee)]

    def committees(self) -> list[tuple[int, ...]]:
        """Every committee whose pool is kept filled or holds something, in order."""
        return sorted({*self.preferred(), *self.pools.committees()})

    def marks(self) -> tuple[int, int]:
        """Below how many presignatures a pool is filled, and up to how many."""
        return self._settings.low, self._settings.high

    def can_sign(self, committee: tuple[int, ...]) -> bool:
        """Whether `committee` is linked, set up, and has a presignature."""
        return self.signers.ready(committee) and self.pools.available(committee) > 0

    def preferred(self) -> list[tuple[int, ...]]:
        """The committees whose pools are kept filled: neighbours in the roster's circle that are all online; where
        there is no such committee, neighbours in the circle of those that are online."""
        size, online = self._roster.committee_size, self.signers.online()
        windows = _windows(self._roster.indices, size)
        return [window for window in windows if set(window) <= set(online)] or _windows(online, size)

    def forget_batch(self, sid: bytes, holders: Sequence[int]) -> None:
        for holder in holders:
            self.signers.order(holder, wire.ForgetBatchOrder(self._random(16), sid))


def _windows(circle: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Every run of `size` neighbours in the circle, each once, sorted within."""
    if len(circle) < size:
        return []
    twice = [*circle, *circle]
    return sorted({tuple(sorted(twice[start : start + size])) for start in range(len(circle))})
