"""Presigning (SPEC 3): one batch of presignatures, one committee."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from appliance.coordinator.ceremonies import Ceremonies, Ceremony
from appliance.coordinator.errors import CeremonyEnded, Rejected, failure
from appliance.coordinator.prepare import CEREMONY_TIMEOUT_S
from enclave import wire

SETTLE_TIMEOUT_S = 10.0
# A time-out comes to all members at once; of a broken link the others know nothing.
SETTLE_UNPROVEN_S = 2.0
UNPROVEN = frozenset({"ceremony/timeout", "ceremony/link"})


class BatchIncomplete(CeremonyEnded):
    """The batch failed, but `holders` had put theirs into their pools: they are to forget batch `sid`."""

    def __init__(self, cause: CeremonyEnded, sid: bytes, holders: tuple[int, ...]) -> None:
        super().__init__(cause.code, cause.reason, cause.signer)
        self.sid, self.holders = sid, holders


async def presign(
    ceremonies: Ceremonies,
    committee: tuple[int, ...],
    count: int,
    nonces: tuple[wire.SignedNonce, ...],
    suspect: Callable[[frozenset[int]], None] = lambda _: None,
) -> bytes:
    """Let `committee` make `count` presignatures with its `nonces`. Returns the batch's 32-byte `sid`. Where members
    say that it failed and can convict nobody, `suspect` is told among whom somebody is to blame. Raises
    `CeremonyEnded`."""
    with ceremonies.open(committee) as ceremony:
        ceremony.order_all(wire.PresignOrder(ceremony.id, committee, count, nonces))
        done: dict[int, wire.PresignDone] = {}
        failed: dict[int, wire.CeremonyFailed] = {}
        try:
            sid = await _collect(ceremony, committee, count, done, failed)
        except (CeremonyEnded, Rejected) as error:
            if isinstance(error, CeremonyEnded) and error.code == "ceremony/peer":
                # SPEC 0.9: the others are finding out who it was.
                await _settle(ceremony, done, failed, SETTLE_TIMEOUT_S)
            elif isinstance(error, CeremonyEnded) and error.code in UNPROVEN:
                await _settle(ceremony, done, failed, SETTLE_UNPROVEN_S)
            if suspects := _suspects(failed, committee):
                suspect(suspects)
            ceremony.abandon()
            cause = error if isinstance(error, CeremonyEnded) else CeremonyEnded(error.rule, error.reason)
            if not done:
                raise cause from None
            raise BatchIncomplete(cause, next(iter(done.values())).sid, tuple(done)) from None
    return sid


async def _settle(
    ceremony: Ceremony, done: dict[int, wire.PresignDone], failed: dict[int, wire.CeremonyFailed], most_s: float
) -> None:
    """Wait for every member's word on a batch that has failed, for a while."""
    deadline_s = asyncio.get_running_loop().time() + most_s
    try:
        while awaited := set(ceremony.members) - done.keys() - failed.keys():
            index, report = await ceremony.next(deadline_s, awaited)
            if isinstance(report, wire.PresignDone):
                done[index] = report
            elif isinstance(report, wire.CeremonyFailed):
                failed[index] = report
    except CeremonyEnded as error:
        if error.code == "signer-away":
            # That explains it: what others say of a link is of the one that is gone.
            failed.clear()


def _suspects(failed: Mapping[int, wire.CeremonyFailed], committee: tuple[int, ...]) -> frozenset[int]:
    """Among whom somebody is to blame for a batch, by the words of those that it failed at; nobody where there are
    culprits or a group. Whoever lets one member wait is named by that one. The words of `t` may be lies, so those
    are suspects, too."""
    if any(report.culprits or report.group for report in failed.values()):
        return frozenset()
    named = {index for report in failed.values() for index in report.suspects}
    if named and len(failed) <= len(committee) // 2:
        named |= failed.keys()
    return frozenset(named & set(committee))


async def _collect(
    ceremony: Ceremony,
    committee: tuple[int, ...],
    count: int,
    done: dict[int, wire.PresignDone],
    failed: dict[int, wire.CeremonyFailed],
) -> bytes:
    """Fill `done` with every member's report, or `failed` with the first of a failure; the `sid` on which all agree."""
    deadline_s = asyncio.get_running_loop().time() + CEREMONY_TIMEOUT_S
    while len(done) < len(committee):
        index, report = await ceremony.next(deadline_s, set(committee) - done.keys())
        if not isinstance(report, wire.PresignDone):
            if isinstance(report, wire.CeremonyFailed):
                failed[index] = report
            raise failure(index, report)
        if (report.committee, report.count) != (committee, count):
            raise CeremonyEnded("unexpected-report", "a batch that was not ordered", index)
        done[index] = report
    sids = {report.sid for report in done.values()}
    if len(sids) != 1:
        raise CeremonyEnded("unexpected-report", "the members name different batches")
    return sids.pop()
