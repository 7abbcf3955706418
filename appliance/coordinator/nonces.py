"""Nonces for batches, asked for ahead of time (SPEC 0.4): one of each signer, so that no batch waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from appliance.coordinator.ceremonies import Ceremonies
from appliance.coordinator.changes import Changes
from appliance.coordinator.errors import CeremonyEnded, Rejected
from appliance.coordinator.prepare import collect_nonces
from enclave import wire

RETRY_S = 5.0


class NoncesAhead:
    """One unused nonce of each signer that is online, of its present session."""

    def __init__(self, ceremonies: Ceremonies, changes: Changes, indices: Sequence[int]) -> None:
        self._ceremonies, self._changes, self._indices = ceremonies, changes, indices
        self._held: dict[int, wire.SignedNonce] = {}
        self._asking = {index: asyncio.Lock() for index in indices}
        self._online: set[int] = set()

    def on_online(self, index: int) -> None:
        """Signer `index` is there."""
        self._held.pop(index, None)
        self._online.add(index)

    def on_lost(self, index: int) -> None:
        """It is gone; the nonces of a boot serve in no other."""
        self._held.pop(index, None)
        self._online.discard(index)

    async def take(self, committee: Sequence[int]) -> tuple[wire.SignedNonce, ...]:
        """A nonce of each, in order; who has given none yet is asked now. Each is handed out once, and the next ones
        are asked for meanwhile. Raises `CeremonyEnded`, `Rejected`."""
        await asyncio.gather(*(self._ask(index) for index in committee))
        for index in committee:
            if index not in self._held:
                raise CeremonyEnded("signer-away", f"signer {index} has disconnected", index)
        taken = tuple(self._held.pop(index) for index in committee)
        self._changes.notify()
        return taken

    async def run(self) -> None:
        """Ask whoever is online and has given none, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for index in self._indices:
                group.create_task(self._keep_one(index))

    async def _keep_one(self, index: int) -> None:
        while True:
            change = self._changes.next()
            if index not in self._online or index in self._held:
                await change.wait()
                continue
            try:
                await self._ask(index)
            except (CeremonyEnded, Rejected):
                # The batch that needs one says why there is none.
                await asyncio.sleep(RETRY_S)

    async def _ask(self, index: int) -> None:
        async with self._asking[index]:
            if index not in self._held:
                with self._ceremonies.open((index,)) as ceremony:
                    (nonce,) = await collect_nonces(ceremony, "presign")
                    ceremony.kind = "nonces"
                self._held[index] = nonce
