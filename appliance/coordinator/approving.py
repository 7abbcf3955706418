"""Approvals of signatures and batches at the coordinator: taken in, kept until they expire, and shown the request to.
Enclaves judge them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from appliance.api.approvals import ApprovalsWanted
from appliance.api.batches import BatchState
from appliance.coordinator.admission import Admission
from appliance.coordinator.problems import NotFound, Unprocessable
from appliance.coordinator.work import Work
from appliance.expiry import iso
from appliance.store import CoordinatorStore
from appliance.store.accepted import OPEN
from appliance.store.batches import BatchRow
from appliance.store.signatures import SignatureRow
from policies.errors import Refused, Unavailable
from policies.signed_requests import claimed_client, claimed_expiry_s

LATE = "approvals/late"
LOOK_EVERY_S = 5.0
ENDED_AT_ONCE = FORGOTTEN_AT_ONCE = 256
# A clock that was set forward by more than this may have been set wrong: so long it can be set right before it counts.
STEP_S, DOUBTED_S = 60.0, 600.0

log = structlog.get_logger()


class Approving:
    """What the API's routes of approvals do."""

    def __init__(
        self, store: CoordinatorStore, work: Work, admission: Admission, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._work, self._admission, self._clock = store, work, admission, wall_clock

    def show(self, row: SignatureRow | BatchRow) -> ApprovalsWanted:
        """What an approver signs, and who has signed it."""
        try:
            body = row.body.decode("utf-8")
        except UnicodeDecodeError:
            raise NotFound("this request cannot be shown: its body is no UTF-8") from None
        given = self._store.approvals.of(row.id)
        return ApprovalsWanted(
            id=row.id,
            key_id=row.key_id,
            status=BatchState(row.state),
            requester=claimed_client(row.jws),
            path=row.path,
            body=body,
            expires=iso(claimed_expiry_s(row.jws)),
            approved_by=tuple(one.approver for one in given if one.expires_s > self._clock()),
        )

    async def approve(self, row: SignatureRow | BatchRow, client: str, jws: str) -> None:
        """Keep the approval of `client`, and let the request be tried again. Raises `Unprocessable` for what enclaves
        would pass over."""
        if row.state not in OPEN:
            raise Unprocessable(f"the request is {row.state}: there is nothing to approve")
        try:
            approver = self._admission.check_approval(jws, row.path, row.body)
        except Refused as refusal:
            raise Unprocessable(f"the approval: {refusal.reason}") from None
        if approver != client:
            raise Unprocessable(f"the approval is of {approver}, the request that brings it of {client}")
        if claimed_client(row.jws) == client:
            raise Unprocessable("nobody approves its own request")
        await self._work.approve(row, client, jws)


class Deadlines:
    """Ends what was not approved for as long as it was signed: its client may sign it anew, and approvals of its body
    that are still valid count then. Those that are not are forgotten. Nothing is by a clock that was just set forward.
    `clock`: monotonic seconds."""

    def __init__(
        self, store: CoordinatorStore, wall_clock: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._wall_clock, self._clock = store, wall_clock, clock
        self._looked_s = wall_clock(), clock()
        self._doubted_until_s = clock()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except Unavailable as error:
                log.warning("deadlines-not-kept", reason=str(error)[:512])
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Do what is due, unless the clock is in doubt. Raises `Unavailable`."""
        (wall_before_s, before_s), now_s = self._looked_s, self._wall_clock()
        self._looked_s = now_s, self._clock()
        stepped_s = (now_s - wall_before_s) - (self._looked_s[1] - before_s)
        if stepped_s > STEP_S:
            self._doubted_until_s = self._looked_s[1] + DOUBTED_S
            remedy = f"if it is wrong, set it right within {DOUBTED_S:.0f} s: no approval is forgotten until then"
            log.warning("clock-set-forward", seconds=round(stepped_s), remedy=remedy)
        if self._looked_s[1] >= self._doubted_until_s:
            await self.end_late(now_s)
            await self.forget_expired(now_s)

    async def end_late(self, now_s: float) -> None:
        """Look once, at `now_s` (Unix seconds). Raises `Unavailable`."""
        for request_id in self._store.awaiting.due(now_s, ENDED_AT_ONCE):
            if await self._store.end_late(request_id, LATE):
                log.info("request-ended", id=request_id, outcome="Failed", reason=LATE)

    async def forget_expired(self, now_s: float) -> None:
        """Approvals that count no longer at `now_s`, a few at a time so that others' writes go between. Raises
        `Unavailable`."""
        while await self._store.approvals.forget_expired(now_s, FORGOTTEN_AT_ONCE) == FORGOTTEN_AT_ONCE:
            pass
