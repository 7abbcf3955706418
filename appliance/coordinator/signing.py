"""One signature (SPEC 4), straight through: authorise, online step, combine; three attempts at most."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from appliance.api.models import SignatureValue
from appliance.coordinator.ceremonies import Ceremonies, Ceremony
from appliance.coordinator.combine import CombineFailed, combine
from appliance.coordinator.errors import CeremonyEnded, failure
from appliance.coordinator.gates import ANSWER_TIMEOUT_S, Gates, unheld
from appliance.coordinator.pools import Pools, Reservation
from appliance.coordinator.recall import After, Earlier, Recall, until_done
from appliance.store.waiting import Waiting
from enclave import wire

MAX_RENAMES = 3
ONLINE_TIMEOUT_S = 20.0


class Network(Protocol):
    """What signing needs of the rest of the coordinator."""

    async def committee(self, *, patient: bool = False, prefer: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Exactly 2t+1 linked signers that have presignatures, `prefer` if it can be. Raises `CeremonyEnded`."""

    async def recallable(self, *, patient: bool = False) -> None:
        """Enough signers to ask what came of a request. Raises `CeremonyEnded`."""

    async def activate_key(self, index: int, key_id: str) -> None:
        """Let signer `index` activate a pending key. Raises `CeremonyEnded`."""

    def resync(self, members: Sequence[int]) -> None:
        """Ask these signers which presignatures they hold."""


@dataclass(frozen=True)
class SigningRequest:
    """What is to be signed. `h`: the 32-byte hash; `public_key`: the child key, 33 bytes.

    `on_pending` is told when a gate says that it needs time, `waiting` is what it was told before a restart.
    `recall_first`: it may have been answered before. `patient`: signers may be on their way back.
    """

    client: wire.ClientRequest
    key_id: str
    h: bytes
    public_key: bytes
    on_pending: Callable[[Waiting], Awaitable[None]]
    recall_first: bool = False
    patient: bool = False
    waiting: Waiting | None = None


class Signing:
    """Runs signing requests. `wall_clock`: Unix seconds."""

    def __init__(
        self,
        ceremonies: Ceremonies,
        pools: Pools,
        network: Network,
        recall: Recall,
        wall_clock: Callable[[], float],
    ) -> None:
        self._ceremonies, self._pools, self._network, self._recall = ceremonies, pools, network, recall
        self._clock = wall_clock

    async def sign(self, request: SigningRequest) -> SignatureValue:
        """A verified signature. Raises `Rejected` where a signer said no, else `CeremonyEnded` of the last attempt."""

        def ask(ceremony: bytes, committee: tuple[int, ...], after: bytes | None) -> wire.SignOrder:
            return wire.SignOrder(ceremony, request.key_id, request.client, committee, unheld(1)[0], after)

        gates = Gates(self._ceremonies, ask, request.on_pending, self._clock, request.waiting)
        return await until_done(
            lambda after: self._attempt(request, after, gates),
            lambda: self._recalled(request),
            lambda signer: self._network.activate_key(signer, request.key_id),
            gates.decided,
            recall_first=request.recall_first or self._recall.always,
        )

    async def _recalled(self, request: SigningRequest) -> tuple[SignatureValue | None, After]:
        """SPEC 4.10: the signature of an earlier attempt, where all its shares were given."""
        # All of a committee must be there, or there is nobody to ask.
        await self._network.committee(patient=request.patient)
        await self._network.recallable(patient=request.patient)
        recalled = await self._recall.ask(request.client)
        for shares in recalled.complete(wire.ShareReport, self._recall.roster.is_committee):
            try:
                return combine(request.h, shares, request.public_key), {}
            except CombineFailed:
                # Somebody gave a wrong share: that attempt has no result.
                continue
        return None, recalled.after()

    async def _attempt(self, request: SigningRequest, after: After, gates: Gates) -> SignatureValue:
        patient = request.patient or bool(gates.committee)
        committee = await self._network.committee(patient=patient, prefer=gates.committee)
        signed = False
        reservation = Reservation(self._pools, committee)
        try:
            with self._ceremonies.open(committee) as approval:
                try:
                    authorizations = await self._authorise(approval, request, reservation, after, gates)
                    # Some member may take it out of its pool from here on.
                    reservation.spend()
                    shares = await self._online_step(request, committee, authorizations, after)
                    value = combine(request.h, shares, request.public_key)
                    signed = True
                    return value
                finally:
                    if not signed:
                        approval.abandon()
        finally:
            reservation.release()

    async def _authorise(
        self, approval: Ceremony, request: SigningRequest, reservation: Reservation, after: After, gates: Gates
    ) -> tuple[wire.SignedAuthorization, ...]:
        """SPEC 4.1: every member's authorization of the request, for one presignature."""
        members = approval.members
        got: dict[int, wire.SignedAuthorization] = {}
        deadline_s = asyncio.get_running_loop().time() + ANSWER_TIMEOUT_S
        renames = 0
        self._order_signing(approval, request, reservation, after)
        while len(got) < len(members):
            index, report = await approval.next(deadline_s, set(members) - got.keys())
            match report:
                case wire.Authorized(_, signed):
                    if signed.authorization.index != index:
                        raise CeremonyEnded("unexpected-report", "another signer's authorization", index)
                    # One that names an earlier presignature was under way when it was renamed.
                    if signed.authorization.terms.presignature == reservation.name:
                        got[index] = signed
                        gates.approved(index)
                case wire.GatePending(_, until_s):
                    await gates.pending(index, until_s, members)
                case wire.UnknownPresignature(_, unknown) if unknown != reservation.name:
                    pass
                case wire.UnknownPresignature():
                    renames += 1
                    self._network.resync(members)
                    if renames > MAX_RENAMES:
                        raise CeremonyEnded("no-presignatures", "the pools of the signers do not agree", index)
                    reservation.rename(index)
                    got.clear()
                    self._order_signing(approval, request, reservation, after)
                case wire.Recalled():
                    raise Earlier(index)
                case _:
                    raise failure(index, report)
            gates.leave(set(got))
        _check_terms(got, request)
        return tuple(got[index] for index in members)

    def _order_signing(
        self, approval: Ceremony, request: SigningRequest, reservation: Reservation, after: After
    ) -> None:
        key_id, members, name = request.key_id, approval.members, reservation.name
        for index in members:
            approval.order(index, wire.SignOrder(approval.id, key_id, request.client, members, name, after.get(index)))

    async def _online_step(
        self,
        request: SigningRequest,
        committee: tuple[int, ...],
        authorizations: tuple[wire.SignedAuthorization, ...],
        after: After,
    ) -> dict[int, wire.ShareReport]:
        """SPEC 4.2: every member's signature share. A ceremony of its own, so that no share of another attempt fits."""
        with self._ceremonies.open(committee) as online:
            # What is answered to this attempt has come to nothing where there is another one.
            after.update(dict.fromkeys(committee, online.id))
            online.order_all(wire.OnlineOrder(online.id, request.key_id, authorizations))
            return await online.one_each(wire.ShareReport, ONLINE_TIMEOUT_S)


def _check_terms(got: dict[int, wire.SignedAuthorization], request: SigningRequest) -> None:
    """All members authorised the same, and the very hash that was asked for. Raises `CeremonyEnded`."""
    first = next(iter(got.values())).authorization.terms
    for index, signed in got.items():
        terms = signed.authorization.terms
        if terms != first:
            raise CeremonyEnded("terms", "the signers authorised different terms", index)
        if terms.h != request.h:
            raise CeremonyEnded("terms", "the signer authorised another hash", index)
