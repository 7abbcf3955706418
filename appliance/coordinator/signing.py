"""One signature (SPEC 4.1 to 4.6): whoever does not hold the presignature has another one named at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from appliance.api.models import SignatureValue
from appliance.coordinator.attempting import Attempting, Wanted, check_same_terms
from appliance.coordinator.ceremonies import Ceremony
from appliance.coordinator.combine import combine
from appliance.coordinator.errors import CeremonyEnded, failure
from appliance.coordinator.gates import ANSWER_TIMEOUT_S, Gates
from appliance.coordinator.pools import Reservation
from appliance.coordinator.recall import After, Earlier
from enclave import wire

MAX_RENAMES = 3


class SigningRequest(Wanted, frozen=True, kw_only=True):
    """What is to be signed. `h`: the 32-byte hash; `public_key`: the child key, 33 bytes."""

    h: bytes
    public_key: bytes


class Signing(Attempting[SigningRequest, Reservation, wire.SignedAuthorization, wire.ShareReport, SignatureValue]):
    """Runs signing requests."""

    online_timeout_s = 20.0

    def _share_type(self) -> type[wire.ShareReport]:
        return wire.ShareReport

    def _order(
        self,
        ceremony: bytes,
        request: SigningRequest,
        committee: tuple[int, ...],
        names: tuple[wire.PresignatureName, ...],
        after: bytes | None,
    ) -> wire.SignOrder:
        (name,) = names
        return wire.SignOrder(ceremony, request.key_id, request.client, committee, name, after)

    def _online_order(
        self, ceremony: bytes, request: SigningRequest, authorizations: tuple[wire.SignedAuthorization, ...]
    ) -> wire.OnlineOrder:
        return wire.OnlineOrder(ceremony, request.key_id, authorizations)

    async def _committee(self, count: int, patient: bool, prefer: tuple[int, ...]) -> tuple[int, ...]:
        return await self._network.committee(count, patient=patient, prefer=prefer)

    def _reserve(self, committee: tuple[int, ...], _: SigningRequest) -> Reservation:
        return Reservation(self._pools, committee)

    async def _authorise(
        self, approval: Ceremony, request: SigningRequest, reservation: Reservation, after: After, gates: Gates
    ) -> tuple[wire.SignedAuthorization, ...]:
        """SPEC 4.1: every member's authorization of the request, for one presignature."""
        members = approval.members
        got: dict[int, wire.SignedAuthorization] = {}
        deadline_s = asyncio.get_running_loop().time() + ANSWER_TIMEOUT_S
        renames = 0
        self._order_all(approval, request, (reservation.name,), after)
        while len(got) < len(members):
            awaited = approval.members_without(got.keys() | gates.undecided)
            for index, report in await approval.several(deadline_s, awaited, wire.Authorized):
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
                        self._order_all(approval, request, (reservation.name,), after)
                    case wire.Recalled():
                        raise Earlier(index)
                    case _:
                        raise failure(index, report)
                gates.leave(got)
        _check_terms(got, request)
        return tuple(got[index] for index in members)

    async def _combine(self, request: SigningRequest, shares: Mapping[int, wire.ShareReport]) -> SignatureValue:
        return combine(request.h, shares, request.public_key)


def _check_terms(got: Mapping[int, wire.SignedAuthorization], request: SigningRequest) -> None:
    """All members authorised the same, and the very hash that was asked for. Raises `CeremonyEnded`."""
    check_same_terms(got)
    for index, signed in got.items():
        if signed.authorization.terms.h != request.h:
            raise CeremonyEnded("terms", "the signer authorised another hash", index)
