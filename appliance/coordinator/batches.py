"""A batch of hashes (SPEC 4.7 to 4.9): authorise once, one online step, then each signature by itself.

What costs time for a thousand hashes is done in a thread, a few hashes at a time and one batch at a time, so that
neither other requests nor the signers' connections wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from appliance.api.derivation import derive
from appliance.api.models import SignatureValue
from appliance.coordinator.attempting import Attempting, Network, Wanted, check_same_terms
from appliance.coordinator.ceremonies import Ceremonies, Ceremony
from appliance.coordinator.combine import CombineFailed, combine
from appliance.coordinator.errors import CeremonyEnded, failure
from appliance.coordinator.gates import ANSWER_TIMEOUT_S, Gates
from appliance.coordinator.pools import BatchReservation, Pools
from appliance.coordinator.recall import After, Earlier, Recall
from enclave import wire
from policies.requests import HashBatch

ITEMS_AT_ONCE = 16
# Every round may use up one of the attempts that the enclaves allow a request.
MAX_ROUNDS = 3


@dataclass(frozen=True)
class Item:
    """One hash: 32 bytes, the path of its key, and that child key, 33 bytes."""

    path: tuple[int, ...]
    h: bytes
    public_key: bytes


class BatchRequest(Wanted, frozen=True, kw_only=True):
    """What is to be signed."""

    items: tuple[Item, ...]

    @property
    def count(self) -> int:
        """As many as it has hashes."""
        return len(self.items)


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


class BatchSigning(
    Attempting[
        BatchRequest,
        BatchReservation,
        wire.SignedBatchAuthorization,
        wire.BatchShareReport,
        tuple[ItemResult, ...],
    ]
):
    """Runs batches: a verified signature for each hash, or why there is none; one at least."""

    online_timeout_s = 60.0

    def __init__(
        self,
        ceremonies: Ceremonies,
        pools: Pools,
        network: Network,
        recall: Recall,
        wall_clock: Callable[[], float],
    ) -> None:
        super().__init__(ceremonies, pools, network, recall, wall_clock)
        self._combining = asyncio.Lock()

    def _share_type(self) -> type[wire.BatchShareReport]:
        return wire.BatchShareReport

    def _order(
        self,
        ceremony: bytes,
        request: BatchRequest,
        committee: tuple[int, ...],
        names: tuple[wire.PresignatureName, ...],
        after: bytes | None,
    ) -> wire.BatchSignOrder:
        return wire.BatchSignOrder(ceremony, request.key_id, request.client, committee, names, after)

    def _online_order(
        self, ceremony: bytes, request: BatchRequest, authorizations: tuple[wire.SignedBatchAuthorization, ...]
    ) -> wire.BatchOnlineOrder:
        return wire.BatchOnlineOrder(ceremony, request.key_id, authorizations)

    async def _committee(self, count: int, patient: bool, prefer: tuple[int, ...]) -> tuple[int, ...]:
        return await self._network.committee_for_batch(count, patient=patient, prefer=prefer)

    def _reserve(self, committee: tuple[int, ...], request: BatchRequest) -> BatchReservation:
        return BatchReservation(self._pools, committee, request.count)

    async def _authorise(
        self, approval: Ceremony, request: BatchRequest, reservation: BatchReservation, after: After, gates: Gates
    ) -> tuple[wire.SignedBatchAuthorization, ...]:
        """SPEC 4.7: every member's authorization of the whole batch, for the presignatures of the last round."""
        for _ in range(MAX_ROUNDS):
            names, members = reservation.names, approval.members
            self._order_all(approval, request, names, after)
            got, unknown = await self._answers(approval, names, gates)
            if not unknown:
                _check_terms(got, request, names)
                return tuple(got[index] for index in members)
            self._network.resync(members)
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

    async def _combine(
        self, request: BatchRequest, shares: Mapping[int, wire.BatchShareReport]
    ) -> tuple[ItemResult, ...]:
        """SPEC 4.9: each by itself. Raises `CombineFailed` where not one of them verifies."""
        _check_counts(shares, request)
        items = request.items
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
    check_same_terms(got)
    for index, signed in got.items():
        terms = signed.authorization.terms
        if (terms.count, terms.items) != (len(names), asked):
            raise CeremonyEnded("terms", "the signer authorised another batch", index)


def _some(values: Sequence[T]) -> list[Sequence[T]]:
    return [values[start : start + ITEMS_AT_ONCE] for start in range(0, len(values), ITEMS_AT_ONCE)]
