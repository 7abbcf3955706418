"""A batch of hashes (SPEC 4.7 to 4.9): authorise once, one online step, then each signature by itself.

What costs time for a thousand hashes is done in a thread, a few hashes at a time and one batch at a time, so that
neither other requests nor the signers' connections wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from appliance.api.derivation import derive
from appliance.api.models import SignatureValue
from appliance.coordinator.ceremonies import Ceremonies, Ceremony
from appliance.coordinator.combine import CombineFailed, combine
from appliance.coordinator.errors import CeremonyEnded, failure
from appliance.coordinator.gates import ANSWER_TIMEOUT_S, Gates, unheld
from appliance.coordinator.pools import BatchReservation, Pools
from appliance.coordinator.recall import After, Earlier, Recall, until_done
from appliance.store.waiting import Waiting
from enclave import wire
from policies.requests import HashBatch

ITEMS_AT_ONCE = 16
# Every round may use up one of the attempts that the enclaves allow a request.
MAX_ROUNDS = 3
ONLINE_TIMEOUT_S = 60.0


class Network(Protocol):
    """What batches need of the rest of the coordinator."""

    async def committee_for_batch(
        self, count: int, *, patient: bool = False, prefer: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """Exactly 2t+1 linked signers that have `count` presignatures, `prefer` if it can be. Raises
        `CeremonyEnded`."""

    async def recallable(self, *, patient: bool = False) -> None:
        """Enough signers to ask what came of a request. Raises `CeremonyEnded`."""

    async def activate_key(self, index: int, key_id: str) -> None:
        """Let signer `index` activate a pending key. Raises `CeremonyEnded`."""

    def resync(self, members: Sequence[int]) -> None:
        """Ask these signers which presignatures they hold."""


@dataclass(frozen=True)
class Item:
    """One hash: 32 bytes, the path of its key, and that child key, 33 bytes."""

    path: tuple[int, ...]
    h: bytes
    public_key: bytes


@dataclass(frozen=True)
class BatchRequest:
    """What is to be signed; the options are those of `SigningRequest`."""

    client: wire.ClientRequest
    key_id: str
    items: tuple[Item, ...]
    on_pending: Callable[[Waiting], Awaitable[None]]
    recall_first: bool = False
    patient: bool = False
    waiting: Waiting | None = None


T = TypeVar("T")

ItemResult = SignatureValue | CombineFailed


async def batch_items(body: HashBatch, key: wire.Acknowledgement) -> tuple[Item, ...]:
    """The hashes of a batch with their child keys. Raises `CallerError` for a path that has no child key."""
    keys: dict[tuple[int, ...], bytes] = {}
    for paths in _some(sorted(set(body.paths()))):
        keys |= await asyncio.to_thread(_derive, paths, key)
    return tuple(
        Item(path, bytes.fromhex(h[2:]), keys[path]) for path, h in zip(body.paths(), body.hashes, strict=True)
    )


def _derive(paths: Sequence[tuple[int, ...]], key: wire.Acknowledgement) -> dict[tuple[int, ...], bytes]:
    return {path: derive(key.public_key, key.chain_code, path)[0] for path in paths}


class BatchSigning:
    """Runs batches. `wall_clock`: Unix seconds."""

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
        self._combining = asyncio.Lock()

    async def sign(self, request: BatchRequest) -> tuple[ItemResult, ...]:
        """A verified signature for each hash, or why there is none; one at least. Raises as `Signing.sign`."""
        names = unheld(len(request.items))

        def ask(ceremony: bytes, committee: tuple[int, ...], after: bytes | None) -> wire.BatchSignOrder:
            return wire.BatchSignOrder(ceremony, request.key_id, request.client, committee, names, after)

        gates = Gates(self._ceremonies, ask, request.on_pending, self._clock, request.waiting)
        return await until_done(
            lambda after: self._attempt(request, after, gates),
            lambda: self._recalled(request),
            lambda signer: self._network.activate_key(signer, request.key_id),
            gates.decided,
            recall_first=request.recall_first or self._recall.always,
        )

    async def _recalled(self, request: BatchRequest) -> tuple[tuple[ItemResult, ...] | None, After]:
        """SPEC 4.10: the results of an earlier attempt, where all its shares were given."""
        # All of a committee must be there, or there is nobody to ask.
        await self._network.committee_for_batch(1, patient=request.patient)
        await self._network.recallable(patient=request.patient)
        recalled = await self._recall.ask(request.client)
        for shares in recalled.complete(wire.BatchShareReport, self._recall.roster.is_committee):
            try:
                _check_counts(shares, request)
                return await self._combine(request.items, shares), {}
            except CeremonyEnded:
                # Somebody gave wrong shares: that attempt has no result.
                continue
        return None, recalled.after()

    async def _attempt(self, request: BatchRequest, after: After, gates: Gates) -> tuple[ItemResult, ...]:
        committee = await self._network.committee_for_batch(
            len(request.items), patient=request.patient or bool(gates.committee), prefer=gates.committee
        )
        given = False
        reservation = BatchReservation(self._pools, committee, len(request.items))
        try:
            with self._ceremonies.open(committee) as approval:
                try:
                    authorizations = await self._authorise(approval, request, reservation, after, gates)
                    # Some member may take them out of its pool from here on.
                    reservation.spend()
                    shares = await self._online_step(request, committee, authorizations, after)
                    given = True
                finally:
                    if not given:
                        approval.abandon()
        finally:
            reservation.release()
        return await self._combine(request.items, shares)

    async def _authorise(
        self, approval: Ceremony, request: BatchRequest, reservation: BatchReservation, after: After, gates: Gates
    ) -> tuple[wire.SignedBatchAuthorization, ...]:
        """SPEC 4.7: every member's authorization of the whole batch, for the presignatures of the last round."""
        for _ in range(MAX_ROUNDS):
            names = reservation.names
            key_id, members = request.key_id, approval.members
            for index in members:
                approval.order(
                    index,
                    wire.BatchSignOrder(approval.id, key_id, request.client, members, names, after.get(index)),
                )
            got, unknown = await self._answers(approval, names, gates)
            if not unknown:
                _check_terms(got, request, names)
                return tuple(got[index] for index in approval.members)
            self._network.resync(approval.members)
            reservation.rename(unknown)
        raise CeremonyEnded("no-presignatures", "the pools of the signers do not agree")

    async def _answers(
        self, approval: Ceremony, names: tuple[wire.PresignatureName, ...], gates: Gates
    ) -> tuple[dict[int, wire.SignedBatchAuthorization], dict[wire.PresignatureName, int]]:
        """One answer of every member: authorizations, and the presignatures that some member does not hold."""
        got: dict[int, wire.SignedBatchAuthorization] = {}
        unknown: dict[wire.PresignatureName, int] = {}
        named, silent = set(names), set(approval.members)
        deadline_s = asyncio.get_running_loop().time() + ANSWER_TIMEOUT_S
        while silent:
            index, report = await approval.next(deadline_s, silent)
            match report:
                case wire.GatePending(_, until_s):
                    await gates.pending(index, until_s, approval.members)
                    gates.leave(set(approval.members) - silent)
                    continue
                case wire.BatchAuthorized(_, signed) if index in silent and signed.authorization.index == index:
                    got[index] = signed
                case wire.UnknownPresignatures(_, lacking) if index in silent and named.issuperset(lacking):
                    unknown |= dict.fromkeys(lacking, index)
                case wire.Recalled():
                    raise Earlier(index)
                case _:
                    raise failure(index, report)
            silent.discard(index)
            gates.approved(index)
            gates.leave(set(approval.members) - silent)
        return got, unknown

    async def _online_step(
        self,
        request: BatchRequest,
        committee: tuple[int, ...],
        authorizations: tuple[wire.SignedBatchAuthorization, ...],
        after: After,
    ) -> dict[int, wire.BatchShareReport]:
        """SPEC 4.8, 4.9: every member's shares of all hashes. A ceremony of its own, as for one signature."""
        with self._ceremonies.open(committee) as online:
            # What is answered to this attempt has come to nothing where there is another one.
            after.update(dict.fromkeys(committee, online.id))
            online.order_all(wire.BatchOnlineOrder(online.id, request.key_id, authorizations))
            shares = await online.one_each(wire.BatchShareReport, ONLINE_TIMEOUT_S)
        _check_counts(shares, request)
        return shares

    async def _combine(
        self, items: tuple[Item, ...], shares: Mapping[int, wire.BatchShareReport]
    ) -> tuple[ItemResult, ...]:
        """Each signature combined and verified. Raises `CombineFailed` where not one of them is."""
        results: list[ItemResult] = []
        for numbers in _some(range(len(items))):
            async with self._combining:
                results += await asyncio.to_thread(_combine_some, numbers, items, shares)
        failed = [result for result in results if isinstance(result, CombineFailed)]
        if len(failed) == len(results):
            raise failed[0]
        return tuple(results)


def _combine_some(
    numbers: Sequence[int], items: tuple[Item, ...], shares: Mapping[int, wire.BatchShareReport]
) -> list[ItemResult]:
    results: list[ItemResult] = []
    for number in numbers:
        single = {
            index: wire.ShareReport(report.ceremony, report.index, report.r_points[number], report.s[number])
            for index, report in shares.items()
        }
        try:
            results.append(combine(items[number].h, single, items[number].public_key))
        except CombineFailed as error:
            results.append(error)
    return results


def _check_counts(shares: Mapping[int, wire.BatchShareReport], request: BatchRequest) -> None:
    """Raises `CeremonyEnded`."""
    for index, report in shares.items():
        if (len(report.r_points), len(report.s)) != (len(request.items),) * 2:
            raise CeremonyEnded("unexpected-report", "not one share for each hash", index)


def _check_terms(
    got: Mapping[int, wire.SignedBatchAuthorization], request: BatchRequest, names: tuple[wire.PresignatureName, ...]
) -> None:
    """All members authorised the same, and the very hashes, paths and presignatures. Raises `CeremonyEnded`."""
    asked = wire.batch_items_digest(
        wire.BatchItem(item.path, item.h, name) for item, name in zip(request.items, names, strict=True)
    )
    first = next(iter(got.values())).authorization.terms
    for index, signed in got.items():
        terms = signed.authorization.terms
        if terms != first:
            raise CeremonyEnded("terms", "the signers authorised different terms", index)
        if (terms.count, terms.items) != (len(names), asked):
            raise CeremonyEnded("terms", "the signer authorised another batch", index)


def _some(values: Sequence[T]) -> list[Sequence[T]]:
    return [values[start : start + ITEMS_AT_ONCE] for start in range(0, len(values), ITEMS_AT_ONCE)]
