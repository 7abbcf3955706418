"""The signers as one network: who can sign together, and what a request waits for (`upkeep` keeps them able to)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance import relay
from appliance.coordinator.ceremonies import Ceremonies
from appliance.coordinator.changes import Changes
from appliance.coordinator.config import PoolSettings, WaitSettings
from appliance.coordinator.convictions import Convictions
from appliance.coordinator.errors import CeremonyEnded
from appliance.coordinator.keybook import KeyBook
from appliance.coordinator.keygen import activate
from appliance.coordinator.learning import KeyLearning
from appliance.coordinator.line import Line
from appliance.coordinator.nonces import NoncesAhead
from appliance.coordinator.pools import Pools
from appliance.coordinator.rationed import RationedLines
from appliance.coordinator.recall import Recall
from appliance.coordinator.refill import Refill, marks_of
from appliance.coordinator.sessions import Signers
from appliance.coordinator.standing import Standing
from appliance.coordinator.suspicions import Suspicions
from appliance.coordinator.upkeep import Upkeep
from enclave import wire
from policies.roster import Roster

BATCH_PATIENCE = 3


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
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        convicted: Path | None = None,
        wait: WaitSettings | None = None,
    ) -> None:
        """`wall_clock`: Unix seconds, for what is shown to people; `clock`: monotonic seconds; `convicted`: the file of
        convictions, None to keep them in memory. Raises `CallerError` for one that is not ours."""
        self._roster, self._changes, self._keybook = roster, changes, keybook
        self._random, self._wait, self._clock = random, wait or WaitSettings(), clock
        # At `k`: since when fewer than `k` signers are online, on the monotonic clock.
        self._fewer_since_s = [clock()] * (roster.n + 2)
        self.signers = Signers(roster, changes, self, wall_clock)
        self.convictions = Convictions(roster, convicted, changes.notify, wall_clock, clock)
        self.standing = Standing(clock, self.convictions.indices, self._left_out)
        self._suspicions = Suspicions(roster, self.standing.failed)
        self.ceremonies = Ceremonies(self.signers.order, random, standing=self.standing)
        self.pools = Pools(marks_of(roster, settings).low, changes, clock)
        self.line = Line()
        self._nonces = NoncesAhead(self.ceremonies, changes, roster.indices)
        self.refill = Refill(
            roster,
            settings,
            self.signers,
            self.pools,
            self.ceremonies,
            self._nonces,
            self.standing,
            self._suspicions,
            changes,
            self.line,
            self.forget_batch,
            clock,
        )
        self.recall = Recall(self.ceremonies, roster, self.signers.online, self.standing)
        self._lines = RationedLines(clock)
        self._upkeep = Upkeep(self, roster, changes, keybook)
        self._learning = KeyLearning(roster, keybook, self.signers.ask_keys, self._upkeep.activate_at, self._lines)

    # --- what signers say ---

    def on_online(self, index: int) -> None:
        """Ask what it holds, and which keys it knows; then see to those it has not activated."""
        self._told(index, "info", "signer-online")
        self._nonces.on_online(index)
        self.pools.forget_member(index)
        self._learning.on_online(index)
        self.resync((index,))

    def on_lost(self, index: int) -> None:
        """Its ceremonies end."""
        self._told(index, "info", "signer-lost")
        self._nonces.on_lost(index)
        self._fewer_since_s[len(self.signers.online()) + 1] = self._clock()
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
                self._told(index, "info", "link", peer=peer, up=up, reason=reason)
            case wire.Convicted(_, kind, _, step, reason, culprits, group, evidence):
                told = {"ceremony": kind, "step": step, "reason": reason, "culprits": culprits, "group": group}
                self._told(index, "warning", "convicted", evidence=evidence.hex(), **told)
                self.convictions.announced(index, report)
                self._suspicions.announced(index, report)
            case _ if self.ceremonies.on_report(index, report):
                pass
            case wire.SetupDone():
                # Another coordinator's: what this signer held is gone (SPEC 1.6).
                self.resync((index,))
            case wire.PresignDone(_, sid):
                # Its ceremony has failed elsewhere meanwhile.
                self.forget_batch(sid, (index,))
            case _:
                self._told(index, "info", "report-dropped", report=type(report).__name__)

    def _told(self, index: int, level: str, event: str, **told: object) -> None:
        """A log line that signer `index` causes: so many of each kind."""
        self._lines.tell(index, level, event, signer=self.signers.name(index), **told)

    def _left_out(self, index: int, why: str, seconds: float) -> None:
        self._told(index, "warning", "signer-left-out", why=why, seconds=round(seconds))

    def on_keys(self, index: int, page: relay.KeyPage) -> None:
        """Keys that were made through other coordinators are learned from certificates."""
        self._learning.on_page(index, page)

    def on_key_added(self, index: int) -> None:
        """Ask for it."""
        self._learning.on_added(index)

    # --- what requests need ---

    async def committee(
        self, count: int = 1, *, patient: bool = False, prefer: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """The committee with most presignatures among those that can sign now, `count` of them at least; one without
        signers that failed or are slow, where there is one.

        Where there is none, requests wait in the order in which they came. Whoever gets a committee takes its
        presignatures before it awaits anything else. Raises `CeremonyEnded` where there is none in time, saying what
        is missing: soon where too few signers are online, unless the request is `patient`.
        """
        return await self._committee(self._wait.pool_s, count, patient, prefer)

    async def _committee(self, timeout_s: float, count: int, patient: bool, prefer: tuple[int, ...]) -> tuple[int, ...]:
        if not len(self.line):
            best = self._best(count, prefer)
            if best is not None:
                return best
            # Filling goes on without a pause while somebody waits.
            self._changes.notify()
        try:
            async with asyncio.timeout(timeout_s), self.line.turn():
                while True:
                    change = self._changes.next()
                    best = self._best(count, prefer)
                    if best is not None:
                        return best
                    await self._next_change(change, self._roster.committee_size, patient)
        except TimeoutError:
            missing = self.trouble() or f"not {count} presignatures in time: the pools were used up by others"
            raise CeremonyEnded("no-committee", missing) from None

    def _best(self, count: int, prefer: tuple[int, ...] = ()) -> tuple[int, ...] | None:
        able = [committee for committee in self._candidates() if self.pools.available(committee) >= count]
        if prefer in able:
            return prefer
        if len(able) == 1:
            return able[0]
        avoided = self.standing.avoided()
        return min(able, key=lambda c: (len(avoided.intersection(c)), -self.pools.available(c)), default=None)

    async def _next_change(self, change: asyncio.Event, needed: int, patient: bool) -> None:
        """Wait for `change`. Raises `TimeoutError` once fewer than `needed` signers have been online for too long."""
        if patient or len(self.signers.online()) >= needed:
            await change.wait()
            return
        async with asyncio.timeout(self._fewer_since_s[needed] + self._wait.signers_s - self._clock()):
            await change.wait()

    async def committee_for_batch(
        self, count: int, *, patient: bool = False, prefer: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """As `committee`; its pool is filled up to `count` where that is more than it is kept at."""
        self.refill.wanted.append(count)
        self._changes.notify()
        try:
            return await self._committee(BATCH_PATIENCE * self._wait.pool_s, count, patient, prefer)
        finally:
            self.refill.wanted.remove(count)

    async def everybody(self, *, patient: bool = False) -> None:
        """Until all signers are linked. Raises `CeremonyEnded` where they aren't in time, as `committee` does."""
        try:
            async with asyncio.timeout(self._wait.pool_s):
                while not self.signers.linked(self._roster.indices):
                    await self._next_change(self._changes.next(), self._roster.n, patient)
        except TimeoutError:
            away = [each.name for each in self._roster.signers if each.index not in self.signers.online()]
            missing = f"all signers must be online; away: {', '.join(away)}" if away else "the links came too late"
            raise CeremonyEnded("no-committee", missing) from None

    async def recallable(self, *, patient: bool = False) -> None:
        """Until so many signers are online that none of their answers can be overlooked (`Recall.needed`). Raises
        `CeremonyEnded` where they aren't in time, as `committee` does."""
        needed = self.recall.needed
        try:
            async with asyncio.timeout(self._wait.pool_s):
                while len(self.signers.online()) < needed:
                    await self._next_change(self._changes.next(), needed, patient)
        except TimeoutError:
            online = len(self.signers.online())
            missing = f"{needed} signers must be online to say whether this was signed before; {online} are"
            raise CeremonyEnded("no-committee", missing) from None

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

    async def run(self) -> None:
        """What keeps the signers able to sign, and learns of their keys, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._upkeep.run())
            group.create_task(self._learning.run())
            group.create_task(self._nonces.run())

    def _candidates(self) -> list[tuple[int, ...]]:
        return [committee for committee in self.committees() if self.signers.ready(committee)]

    def committees(self) -> list[tuple[int, ...]]:
        """Every committee whose pool is kept filled or holds something, in order."""
        return sorted({*self.refill.preferred(), *self.pools.committees()})

    def can_sign(self, committee: tuple[int, ...]) -> bool:
        """Whether `committee` is linked, set up, and has a presignature."""
        return self.signers.ready(committee) and self.pools.available(committee) > 0

    def forget_batch(self, sid: bytes, holders: Sequence[int]) -> None:
        """Let these signers drop a batch that another member of it does not hold."""
        for holder in holders:
            self.signers.order(holder, wire.ForgetBatchOrder(self._random(16), sid))
