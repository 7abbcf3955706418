"""Approvals of other clients' requests: what an approver is shown, and what is made of it."""

from __future__ import annotations

import msgspec

from appliance.api.batches import BATCH_ID_PREFIX, BatchState
from appliance.api.models import ApiStruct
from policies.errors import CallerError, Refused
from policies.requests import HashBatch, SigningBody, signature_batches_path, signatures_path
from policies.signed_requests import parse_strictly


class ApprovalsWanted(ApiStruct, frozen=True):
    """What an approver of a request signs: `body`, exactly these characters as UTF-8, under `path`. `status`: of a
    signature or a batch. `requester`: the client that asks, as it says; `approved_by`: whose approvals are here, and
    count still; `expires`: its end."""

    id: str
    key_id: str
    status: BatchState
    requester: str
    path: str
    body: str
    expires: str
    approved_by: tuple[str, ...]


class ApprovalBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST …/signatures/{signature}/approvals`, and of a batch. `approval`: the approver's detached JWS over the body
    of the request, signed for the method `APPROVE` and the path of that request."""

    approval: str


def approvable_path(key_id: str, request_id: str) -> str:
    """The path that an approval of the request is signed for."""
    return signature_batches_path(key_id) if request_id.startswith(BATCH_ID_PREFIX) else signatures_path(key_id)


def read_approvable(path: str, key_id: str, body: bytes) -> SigningBody | HashBatch:
    """What is to be approved under `path`. Raises `CallerError` where it is no such request, or another key's."""
    try:
        if path == signature_batches_path(key_id):
            return parse_strictly(body, HashBatch, "body")
        if path == signatures_path(key_id):
            single: SigningBody = parse_strictly(body, SigningBody, "body")  # type: ignore[arg-type]
            return single
    except Refused as refusal:
        raise CallerError(f"the request cannot be read: {refusal.reason}") from None
    raise CallerError(f"the request is for {path}, not for {key_id}")
