"""What keeps the signers able to sign: loops beside the requests.

Setup where PRSS epochs are missing or differ, refill of pools, activation of keys at signers that missed it. Each
waits for a change while it has nothing to do and backs off while it fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from appliance.coordinator.changes import Changes
from appliance.coordinator.errors import CeremonyEnded, Rejected
from appliance.coordinator.keybook import KeyBook
from appliance.coordinator.setup import setup
from policies.errors import Unavailable
from policies.repeats import Repeats
from policies.roster import Roster

if TYPE_CHECKING:
    from appliance.coordinator.network import Network

FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0
RESYNC_S = 10.0
TELL_AT_MOST_EVERY_S = 1.0
KEYS_TO_ACTIVATE_AT_ONCE = 256

log = structlog.get_logger()


class Upkeep:
    """The loops of one `network`."""

    def __init__(self, network: Network, roster: Roster, changes: Changes, keybook: KeyBook) -> None:
        self._network, self._roster = network, roster
        self._changes, self._keybook = changes, keybook
        self._signers, self._ceremonies, self._pools = network.signers, network.ceremonies, network.pools
        self._to_activate: set[int] = set()
        self._repeats = Repeats(time.monotonic)

    def activate_at(self, index: int) -> None:
        """Signer `index` may have missed the activation of keys."""
        self._to_activate.add(index)
        self._changes.notify()

    def on_lost(self, index: int) -> None:
        """Signer `index` is away: there is nothing to do for it."""
        self._to_activate.discard(index)

    async def run(self) -> None:
        """All loops, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat("setup", self._setup_if_needed))
            group.create_task(self._repeat("presigning", self._network.refill.step))
            group.create_task(self._repeat("activation", self._activate_if_needed))
            group.create_task(self._resync_forever())
            group.create_task(self._tell_forever())

    async def _repeat(self, what: str, step: Callable[[], Awaitable[bool]]) -> None:
        """Do `step` while it has something to do, wait for a change where it had not, back off where it failed."""
        retry_s = FIRST_RETRY_S
        while True:
            try:
                change = self._changes.next()
                if not await step():
                    await change.wait()
                retry_s = FIRST_RETRY_S
                self._repeats.over(what)
            except (CeremonyEnded, Rejected, Unavailable) as error:
                retries = self._repeats.due(what, str(error))
                if retries is not None:
                    log.warning(f"{what}-failed", reason=str(error)[:512], retries=retries)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    async def _setup_if_needed(self) -> bool:
        if not self._signers.linked(self._roster.indices) or self._next_epoch() is None:
            return False
        ordered: int | None = None

        def next_epoch() -> int | None:
            nonlocal ordered
            ordered = self._next_epoch()
            return ordered

        try:
            done = await setup(self._ceremonies, self._roster, next_epoch)
        finally:
            if ordered is not None:
                self._pools.drop_all()
                self._network.resync(self._signers.online())
        if done is not None:
            log.info("setup-done", prss_epoch=done)
        return True

    def _next_epoch(self) -> int | None:
        """The PRSS epoch that all signers should come to; None where they are at one."""
        epochs = self._signers.epochs(self._roster.indices)
        return None if len(epochs) == 1 and 0 not in epochs else 1 + max(epochs)

    async def _activate_if_needed(self) -> bool:
        if not self._to_activate:
            return False
        index = self._to_activate.pop()
        for key_id in self._keybook.missing_at(index, self._roster.n, KEYS_TO_ACTIVATE_AT_ONCE):
            try:
                await self._network.activate_key(index, key_id)
            except CeremonyEnded as error:
                log.warning("activation-failed", signer=self._signers.name(index), key=key_id, reason=str(error))
                if error.code in ("signer-away", "timeout"):
                    break
        return True

    async def _tell_forever(self) -> None:
        """One line whenever signing has become possible, or impossible for another reason than before."""
        told: str | None = None
        while True:
            change = self._changes.next()
            trouble = self._network.trouble()
            if trouble != told:
                told = trouble
                log.warning("degraded", reason=trouble) if trouble else log.info("ready")
                await asyncio.sleep(TELL_AT_MOST_EVERY_S)
            else:
                await change.wait()

    async def _resync_forever(self) -> None:
        """A signer that was asked what it holds and has not answered is asked again."""
        while True:
            await asyncio.sleep(RESYNC_S)
            self._network.resync([index for index in self._signers.online() if not self._pools.synced((index,))])
