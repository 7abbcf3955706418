"""Presigning (SPEC 3): one batch of presignatures, one committee."""

from __future__ import annotations

import asyncio
import contextlib

from appliance.coordinator.ceremonies import Ceremonies, Ceremony
from appliance.coordinator.errors import CeremonyEnded, Rejected, failure
from appliance.coordinator.prepare import CEREMONY_TIMEOUT_S
from enclave import wire

SETTLE_TIMEOUT_S = 10.0


class BatchIncomplete(CeremonyEnded):
    """The batch failed, but `holders` had put theirs into their pools: they are to forget batch `sid`."""

    def __init__(self, cause: CeremonyEnded, sid: bytes, holders: tuple[int, ...]) -> None:
        super().__init__(cause.code, cause.reason, cause.signer)
        self.sid, self.holders = sid, holders


async def presign(
    ceremonies: Ceremonies, committee: tuple[int, ...], count: int, nonces: tuple[wire.SignedNonce, ...]
) -> bytes:
    """Let `committee` make `count` presignatures with its `nonces`. Returns the batch's 32-byte `sid`. Raises
    `CeremonyEnded`."""
    with ceremonies.open(committee) as ceremony:
        ceremony.order_all(wire.PresignOrder(ceremony.id, committee, count, nonces))
        done: dict[int, wire.PresignDone] = {}
        try:
            sid = await _collect(ceremony, committee, count, done)
        except (CeremonyEnded, Rejected) as error:
            if isinstance(error, CeremonyEnded) and error.code == "ceremony/peer":
                # SPEC 0.9: the others are finding out who it was.
                await _settle(ceremony, done, {error.signer})
            ceremony.abandon()
            cause = error if isinstance(error, CeremonyEnded) else CeremonyEnded(error.rule, error.reason)
            if not done:
                raise cause from None
            raise BatchIncomplete(cause, next(iter(done.values())).sid, tuple(done)) from None
    return sid


async def _settle(ceremony: Ceremony, done: dict[int, wire.PresignDone], failed: set[int]) -> None:
    """Wait for every member's word on a batch that has failed, for a while."""
    deadline_s = asyncio.get_running_loop().time() + SETTLE_TIMEOUT_S
    with contextlib.suppress(CeremonyEnded):
        while awaited := set(ceremony.members) - done.keys() - failed:
            index, report = await ceremony.next(deadline_s, awaited)
            if isinstance(report, wire.PresignDone):
                done[index] = report
            else:
                failed.add(index)


async def _collect(
    ceremony: Ceremony, committee: tuple[int, ...], count: int, done: dict[int, wire.PresignDone]
) -> bytes:
    """Fill `done` with every member's report; the `sid` on which all agree."""
    deadline_s = asyncio.get_running_loop().time() + CEREMONY_TIMEOUT_S
    while len(done) < len(committee):
        index, report = await ceremony.next(deadline_s, set(committee) - done.keys())
        if not isinstance(report, wire.PresignDone):
            raise failure(index, report)
        if (report.committee, report.count) != (committee, count):
            raise CeremonyEnded("unexpected-report", "a batch that was not ordered", index)
        done[index] = report
    sids = {report.sid for report in done.values()}
    if len(sids) != 1:
        raise CeremonyEnded("unexpected-report", "the members name different batches")
    return sids.pop()
