"""The terms of a signature (SPEC 4.1) and of a batch (SPEC 4.7): made from an approval, signed as an authorization.

The two never stand for each other: they are different structs, and are signed under different tags.
"""

from __future__ import annotations

from enclave.attempts import Approval, Attempt
from enclave.wire import (
    Authorization,
    AuthorizationTerms,
    BatchAuthorization,
    BatchItem,
    BatchTerms,
    batch_items_digest,
    encode,
)
from policies.transcript import Tag, digest


def make_terms(
    approval: Approval, attempt: Attempt, request_digest: bytes, prss_epoch: int
) -> AuthorizationTerms | BatchTerms:
    """What this enclave lets be signed: the approved items, each with the presignature that the attempt names."""
    key = approval.key.acknowledgement
    if approval.batch:
        items = zip(approval.items, attempt.presignatures, strict=True)
        return BatchTerms(
            scheme="KU25",
            curve=key.curve,
            roster_digest=key.roster_digest,
            prss_epoch=prss_epoch,
            key_epoch=key.key_epoch,
            key_id=key.key_id,
            public_key=key.public_key,
            count=len(approval.items),
            items=batch_items_digest(BatchItem(item.path, item.h, name) for item, name in items),
            request_digest=request_digest,
            committee=attempt.committee,
        )
    (item,), (presignature,) = approval.items, attempt.presignatures
    return AuthorizationTerms(
        scheme="KU25",
        curve=key.curve,
        roster_digest=key.roster_digest,
        prss_epoch=prss_epoch,
        key_epoch=key.key_epoch,
        key_id=key.key_id,
        public_key=key.public_key,
        path=item.path,
        h=item.h,
        request_digest=request_digest,
        committee=attempt.committee,
        presignature=presignature,
    )


def authorization_digest(authorization: Authorization | BatchAuthorization) -> bytes:
    """The 32 bytes that a member's frame key signs."""
    tag = Tag.BATCH_AUTHORIZATION if isinstance(authorization, BatchAuthorization) else Tag.AUTHORIZATION
    return digest(tag, encode(authorization))


def audit_facts(terms: AuthorizationTerms | BatchTerms) -> dict[str, str | int]:
    """What the audit chain says of the terms: the hash, or what names all of a batch's."""
    if isinstance(terms, BatchTerms):
        return {"key_id": terms.key_id, "items": terms.items.hex(), "count": terms.count}
    return {"key_id": terms.key_id, "hash": terms.h.hex()}
