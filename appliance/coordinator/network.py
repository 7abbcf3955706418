"""The signers as one network: who can sign together, and what keeps them able to.

Three loops run beside the requests: setup where PRSS epochs are missing or differ, refill of pools, and activation of
keys at signers that missed it. Each backs off while it fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from appliance.coordinator.ceremonies import Ceremonies
from appliance.coordinator.changes import Changes
from appliance.coordinator.config import PoolSettings
from appliance.coordinator.errors import CeremonyEnded, Rejected
from appliance.coordinator.keybook import KeyBook
from appliance.coordinator.keygen import activate
from appliance.coordinator.pools import Pools
from appliance.coordinator.presigning import BatchIncomplete, presign
from appliance.coordinator.sessions import Signers
from appliance.coordinator.setup import setup
from enclave import wire
from policies.errors import Unavailable
from policies.roster import Roster

FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0
RESYNC_S = 10.0
KEYS_TO_ACTIVATE_AT_ONCE = 256

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
        self._filling: set[tuple[int, ...]] = set()
        self._wanted: list[int] = []
        self._to_activate: set[int] = set()

    # --- what signers say ---

    def on_online(self, index: int) -> None:
        """Ask what it holds, and see to the keys it has not activated."""
        log.info("signer-online", signer=self.signers.name(index))
        self.pools.forget_member(index)
        self._to_activate.add(index)
        self.resync((index,))

    def on_lost(self, index: int) -> None:
        """Its ceremonies end."""
        log.info("signer-lost", signer=self.signers.name(index))
        self.pools.forget_member(index)
        self._to_activate.discard(index)
        self.ceremonies.on_lost(index)

    def on_report(self, index: int, report: wire.ReportBody) -> None:
        """Pools and links are looked at here, everything else belongs to a ceremony."""
        match report:
            case wire.Pools():
                for sid, holders in self.pools.on_pools(index, report):
                    self._forget_batch(sid, holders)
            case wire.LinkReport(peer, up, reason):
                log.info("link", signer=self.signers.name(index), peer=peer, up=up, reason=reason)
            case _ if self.ceremonies.on_report(index, report):
                pass
            case wire.PresignDone(_, sid):
                # Its ceremony has failed elsewhere meanwhile.
                self._forget_batch(sid, (index,))
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
        missing = set(members) & set(self.signers.online())
        if missing:
            self._to_activate |= missing
            self._changes.notify()

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

    # --- what keeps them able to ---

    async def run(self) -> None:
        """The three loops, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat("setup", self._setup_if_needed))
            group.create_task(self._repeat("presigning", self._refill_if_needed))
            group.create_task(self._repeat("activation", self._activate_if_needed))
            group.create_task(self._resync_forever())

    async def _repeat(self, what: str, step: Callable[[], Awaitable[bool]]) -> None:
        """Do `step` while it has something to do, wait for a change where it had not, back off where it failed."""
        retry_s = FIRST_RETRY_S
        while True:
            try:
                change = self._changes.next()
                if not await step():
                    await change.wait()
                retry_s = FIRST_RETRY_S
            except (CeremonyEnded, Rejected, Unavailable) as error:
                log.warning(f"{what}-failed", reason=str(error)[:512], retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    async def _setup_if_needed(self) -> bool:
        everybody = self._roster.indices
        if not self.signers.linked(everybody):
            return False
        epochs = self.signers.epochs(everybody)
        if len(epochs) == 1 and 0 not in epochs:
            return False
        epoch = 1 + max(epochs)
        try:
            await setup(self.ceremonies, self._roster, epoch)
        finally:
            self.pools.drop_all()
            self.resync(self.signers.online())
        log.info("setup-done", prss_epoch=epoch)
        return True

    async def _refill_if_needed(self) -> bool:
        committee = self._next_to_fill()
        if committee is None:
            return False
        self.pools.presigning(committee, under_way=True)
        try:
            sid = await presign(self.ceremonies, committee, self._settings.batch)
            self.pools.add(sid, committee, self._settings.batch)
        except BatchIncomplete as error:
            self._forget_batch(error.sid, error.holders)
            raise
        finally:
            self.pools.presigning(committee, under_way=False)
        log.info("presigned", committee=committee, available=self.pools.available(committee))
        return True

    def _next_to_fill(self) -> tuple[int, ...] | None:
        """The fullest committee where a batch waits for more; else one below `low`, or on its way from there to
        `high`, the emptiest first."""
        ready = [c for c in self.preferred() if self.pools.synced(c) and self.signers.ready(c)]
        fullest = max(ready, key=self.pools.available, default=None)
        if fullest is not None and self.pools.available(fullest) < max(self._wanted, default=0):
            return fullest
        for committee in ready:
            available = self.pools.available(committee)
            if available < self._settings.low:
                self._filling.add(committee)
            elif available >= self._settings.high:
                self._filling.discard(committee)
        self._filling &= set(self.preferred())
        return min(self._filling & set(ready), key=self.pools.available, default=None)

    async def _activate_if_needed(self) -> bool:
        if not self._to_activate:
            return False
        index = self._to_activate.pop()
        for key_id in self._keybook.missing_at(index, KEYS_TO_ACTIVATE_AT_ONCE):
            try:
                await self.activate_key(index, key_id)
            except CeremonyEnded as error:
                log.warning("activation-failed", signer=self.signers.name(index), key=key_id, reason=str(error))
                if error.code in ("signer-away", "timeout"):
                    break
        return True

    async def _resync_forever(self) -> None:
        """A signer that was asked what it holds and has not answered is asked again."""
        while True:
            await asyncio.sleep(RESYNC_S)
            self.resync([index for index in self.signers.online() if not self.pools.synced((index,))])

    def _forget_batch(self, sid: bytes, holders: Sequence[int]) -> None:
        for holder in holders:
            self.signers.order(holder, wire.ForgetBatchOrder(self._random(16), sid))


def _windows(circle: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Every run of `size` neighbours in the circle, each once, sorted within."""
    if len(circle) < size:
        return []
    twice = [*circle, *circle]
    return sorted({tuple(sorted(twice[start : start + size])) for start in range(len(circle))})
