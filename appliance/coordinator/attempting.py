"""Straight through SPEC 4, for one hash or a batch of them: authorise, online step, combine; three attempts at most."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

import msgspec

from appliance.coordinator.ceremonies import Ceremonies, Ceremony
from appliance.coordinator.errors import CeremonyEnded
from appliance.coordinator.gates import Gates, unheld
from appliance.coordinator.pools import Pools
from appliance.coordinator.recall import After, Recall, until_done
from appliance.store.waiting import Waiting
from enclave import wire


class Network(Protocol):
    """What signing needs of the rest of the coordinator."""

    async def committee(
        self, count: int = 1, *, patient: bool = False, prefer: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """Exactly 2t+1 linked signers that have `count` presignatures, `prefer` if it can be. Raises
        `CeremonyEnded`."""

    async def committee_for_batch(
        self, count: int, *, patient: bool = False, prefer: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """As `committee`, with more patience: they may have to be made."""

    async def recallable(self, *, patient: bool = False) -> None:
        """Enough signers to ask what came of a request. Raises `CeremonyEnded`."""

    async def activate_key(self, index: int, key_id: str) -> None:
        """Let signer `index` activate a pending key. Raises `CeremonyEnded`."""

    def resync(self, members: Sequence[int]) -> None:
        """Ask these signers which presignatures they hold."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A signed request for signatures under a key.

    `on_pending` is told when a gate says that it needs time, `waiting` is what it was told before a restart.
    `recall_first`: it may have been answered before. `patient`: signers may be on their way back.
    """

    client: wire.ClientRequest
    key_id: str
    on_pending: Callable[[Waiting], Awaitable[None]]
    recall_first: bool = False
    patient: bool = False
    waiting: Waiting | None = None

    @property
    def count(self) -> int:
        """How many presignatures it takes."""
        return 1


class Reserved(Protocol):
    """What was named of the pools for one attempt."""

    def spend(self) -> None:
        """From now on it may be gone at some member."""

    def release(self) -> None:
        """The attempt is over."""


class Signed(Protocol):
    """A member's authorization, as far as all kinds of it are alike."""

    @property
    def authorization(self) -> wire.Authorization | wire.BatchAuthorization:
        """What it signed."""


R = TypeVar("R", bound=Wanted)
N = TypeVar("N", bound=Reserved)
A = TypeVar("A", bound=Signed)
S = TypeVar("S", wire.ShareReport, wire.BatchShareReport)
V = TypeVar("V")


class Attempting(ABC, Generic[R, N, A, S, V]):
    """Carries out requests `R` to results `V`: by reservations `N`, authorizations `A` and shares `S`. `wall_clock`:
    Unix seconds."""

    online_timeout_s: ClassVar[float]

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

    async def sign(self, request: R) -> V:
        """What came of it, verified. Raises `Rejected` where a signer said no, else `CeremonyEnded` of the last
        attempt."""

        def ask(ceremony: bytes, committee: tuple[int, ...], after: bytes | None) -> wire.OrderBody:
            return self._order(ceremony, request, committee, unheld(request.count), after)

        gates = Gates(self._ceremonies, ask, request.on_pending, self._clock, request.waiting)
        return await until_done(
            lambda after: self._attempt(request, after, gates),
            lambda: self._recalled(request),
            lambda signer: self._network.activate_key(signer, request.key_id),
            gates.decided,
            recall_first=request.recall_first or self._recall.always,
        )

    async def _recalled(self, request: R) -> tuple[V | None, After]:
        """SPEC 4.10: what came of an earlier attempt, where all its shares were given."""
        # All of a committee must be there, or there is nobody to ask.
        await self._committee(1, request.patient, ())
        await self._network.recallable(patient=request.patient)
        recalled = await self._recall.ask(request.client)
        for shares in recalled.complete(self._share_type(), self._recall.roster.is_committee):
            try:
                return await self._combine(request, shares), {}
            except CeremonyEnded:
                # Somebody gave a wrong share: that attempt has no result.
                continue
        return None, recalled.after()

    async def _attempt(self, request: R, after: After, gates: Gates) -> V:
        patient = request.patient or bool(gates.committee)
        committee = await self._committee(request.count, patient, gates.committee)
        signed = False
        reservation = self._reserve(committee, request)
        try:
            with self._ceremonies.open(committee) as approval:
                try:
                    authorizations = await self._authorise(approval, request, reservation, after, gates)
                    # Some member may take them out of its pool from here on.
                    reservation.spend()
                    shares = await self._online_step(request, committee, authorizations, after)
                    value = await self._combine(request, shares)
                    signed = True
                    return value
                finally:
                    if not signed:
                        approval.abandon()
        finally:
            reservation.release()

    async def _online_step(
        self, request: R, committee: tuple[int, ...], authorizations: tuple[A, ...], after: After
    ) -> dict[int, S]:
        """SPEC 4.2, 4.8: every member's shares. A ceremony of its own, so that no share of another attempt fits."""
        with self._ceremonies.open(committee) as online:
            # What is answered to this attempt has come to nothing where there is another one.
            after.update(dict.fromkeys(committee, online.id))
            online.order_all(self._online_order(online.id, request, authorizations))
            return await online.one_each(self._share_type(), self.online_timeout_s)

    def _order_all(
        self, approval: Ceremony, request: R, names: tuple[wire.PresignatureName, ...], after: After
    ) -> None:
        """Put the request to every member, with these presignatures."""
        members = approval.members
        if not after:
            approval.order_all(self._order(approval.id, request, members, names, None))
            return
        for index in members:
            approval.order(index, self._order(approval.id, request, members, names, after.get(index)))

    # --- what one hash and a batch do differently ---

    @abstractmethod
    def _share_type(self) -> type[S]:
        """What a member answers in the online step."""

    @abstractmethod
    def _order(
        self,
        ceremony: bytes,
        request: R,
        committee: tuple[int, ...],
        names: tuple[wire.PresignatureName, ...],
        after: bytes | None,
    ) -> wire.OrderBody:
        """What puts the request to a member, with these presignatures."""

    @abstractmethod
    def _online_order(self, ceremony: bytes, request: R, authorizations: tuple[A, ...]) -> wire.OrderBody:
        """What asks a member for its shares."""

    @abstractmethod
    async def _committee(self, count: int, patient: bool, prefer: tuple[int, ...]) -> tuple[int, ...]:
        """Who is to sign, and has `count` presignatures. Raises `CeremonyEnded`."""

    @abstractmethod
    def _reserve(self, committee: tuple[int, ...], request: R) -> N:
        """Presignatures of this committee. Raises `CeremonyEnded`."""

    @abstractmethod
    async def _authorise(
        self, approval: Ceremony, request: R, reservation: N, after: After, gates: Gates
    ) -> tuple[A, ...]:
        """Every member's authorization, in the members' order. Raises `Rejected`, `CeremonyEnded`, `GatesTakeTime`."""

    @abstractmethod
    async def _combine(self, request: R, shares: Mapping[int, S]) -> V:
        """Signatures, verified. Raises `CeremonyEnded`."""


def check_same_terms(got: Mapping[int, Signed]) -> None:
    """Raises `CeremonyEnded` where members authorised different terms."""
    first = next(iter(got.values())).authorization.terms
    for index, signed in got.items():
        if signed.authorization.terms != first:
            raise CeremonyEnded("terms", "the signers authorised different terms", index)
