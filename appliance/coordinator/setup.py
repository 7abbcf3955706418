"""Network setup (SPEC 1): PRSS seeds of a new epoch, all signers of the roster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from appliance.coordinator.ceremonies import Ceremonies, Ceremony
from appliance.coordinator.errors import CeremonyEnded, failure
from appliance.coordinator.prepare import CEREMONY_TIMEOUT_S, NONCE_TIMEOUT_S
from enclave import wire
from policies.roster import Roster


async def setup(ceremonies: Ceremonies, roster: Roster, next_epoch: Callable[[], int | None]) -> int | None:
    """Let all signers make the seeds of a new epoch, and return it; None where another coordinator was faster.

    `next_epoch()`: the epoch to make by what the signers have said, None where there is nothing to do. Raises
    `CeremonyEnded`; some signers may be at the new epoch then.
    """
    with ceremonies.open(roster.indices) as ceremony:
        done = False
        try:
            nonces = await _nonces_in_turn(ceremony)
            # A signer has told of an epoch it came to before it gave its nonce.
            epoch = next_epoch()
            if epoch is None:
                return None
            ceremony.order_all(wire.SetupOrder(ceremony.id, epoch, nonces))
            reports = await ceremony.one_each(wire.SetupDone, CEREMONY_TIMEOUT_S)
            done = True
        finally:
            if not done:
                ceremony.abandon()
    for index, report in reports.items():
        if report.epoch != epoch:
            raise CeremonyEnded("unexpected-report", f"epoch {report.epoch} was not ordered", index)
    return epoch


async def _nonces_in_turn(ceremony: Ceremony) -> tuple[wire.SignedNonce, ...]:
    """SPEC 1.7: the members' nonces, asked for one after the other, so that of two coordinators one gets them all."""
    nonces = []
    for index in ceremony.members:
        ceremony.order(index, wire.PrepareOrder(ceremony.id, "setup"))
        deadline_s = asyncio.get_running_loop().time() + NONCE_TIMEOUT_S
        sender, report = await ceremony.next(deadline_s, (index,))
        if sender != index or not isinstance(report, wire.NonceReport):
            raise failure(sender, report)
        nonces.append(report.nonce)
    return tuple(nonces)
