"""What the API answers about a batch of hashes, and what a client checks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from appliance.api.models import ApiStruct, Reason, SignatureValue
from appliance.api.results import require
from appliance.api.signatures import SignatureRefused, verify_signature
from policies.requests import HashBatch


class BatchState(StrEnum):
    """As `SignatureState`, and `PartlySigned`.

    `PartlySigned`: the decision was for all, but shares of some hashes did not make a signature.
    """

    PENDING = "Pending"
    EXECUTING = "Executing"
    SIGNED = "Signed"
    PARTLY_SIGNED = "PartlySigned"
    FAILED = "Failed"
    REJECTED = "Rejected"
    AWAITING = "AwaitingApprovals"


BATCH_ID_PREFIX = "batch_"


class BatchResult(ApiStruct, frozen=True):
    """What came of one hash: a signature, or the reason why there is none."""

    signature: SignatureValue | None = None
    reason: Reason | None = None


class BatchSummary(ApiStruct, frozen=True):
    """A batch in a list: where it stands, without its results."""

    id: str
    key_id: str
    status: BatchState
    count: int
    external_id: str
    created_at: str
    reason: Reason | None = None


class SignatureBatch(BatchSummary, frozen=True):
    """A batch and where it stands. `results`: one for each hash, in order, once shares were given."""

    results: tuple[BatchResult, ...] = ()


class SignatureBatchList(ApiStruct, frozen=True):
    """One page of a key's batches, oldest first."""

    items: tuple[BatchSummary, ...]
    next_cursor: str | None = None


def verify_batch(answer: SignatureBatch, body: HashBatch, child_key: Callable[[Sequence[int]], bytes]) -> None:
    """Every signature of an ended batch, over its hash and under its child key (`child_key` of a path, 33 bytes).

    Raises `Rejected`, `AwaitingApprovals` or `Failed` where the batch was not signed; `SignatureRefused` for an answer
    that is not one to `body`. An item of a `PartlySigned` batch may have a reason instead of a signature.
    """
    require(answer, BatchState.SIGNED, BatchState.PARTLY_SIGNED)
    if len(answer.results) != len(body.hashes):
        raise SignatureRefused(f"{len(answer.results)} results for {len(body.hashes)} hashes")
    keys: dict[tuple[int, ...], bytes] = {}
    for result, text, path in zip(answer.results, body.hashes, body.paths(), strict=True):
        if result.signature is None and answer.status is BatchState.PARTLY_SIGNED:
            continue
        if path not in keys:
            keys[path] = child_key(path)
        verify_signature(result.signature, keys[path], bytes.fromhex(text[2:]))
