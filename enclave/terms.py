"""The terms of a signature (SPEC 4.1) and of a batch (SPEC 4.7): made from an approval, signed as an authorization.

The two never stand for each other: they are different structs, and are signed under different tags.
"""

from __future__ import annotations

from enclave.attempts import Approval, Attempt
from enclave.channels.frames import sign_digest
from enclave.members import OwnSession
from enclave.wire import (
    Authorization,
    AuthorizationTerms,
    Authorized,
    BatchAuthorization,
    BatchAuthorized,
    BatchItem,
    BatchTerms,
    SignedAuthorization,
    SignedBatchAuthorization,
    batch_items_digest,
    encode,
)
from policies.transcript import Tag, digest

# So long it may be used.
AUTHORIZATION_S = 30


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


def new_authorization(
    terms: AuthorizationTerms | BatchTerms, me: OwnSession, rho: bytes, until_s: int
) -> Authorization | BatchAuthorization:
    """Good until `until_s` (Unix seconds), and in this boot alone. `rho`: 32 fresh random bytes."""
    if isinstance(terms, BatchTerms):
        return BatchAuthorization(terms, me.index, me.boot_nonce, rho, until_s)
    return Authorization(terms, me.index, me.boot_nonce, rho, until_s)


def sign_authorization(
    ceremony: bytes, authorization: Authorization | BatchAuthorization, me: OwnSession
) -> Authorized | BatchAuthorized:
    """Signed with the frame key, as it is reported."""
    signature = sign_digest(me.frame_secret, authorization_digest(authorization))
    if isinstance(authorization, BatchAuthorization):
        return BatchAuthorized(ceremony, SignedBatchAuthorization(authorization, signature))
    return Authorized(ceremony, SignedAuthorization(authorization, signature))


def audit_facts(terms: AuthorizationTerms | BatchTerms) -> dict[str, str | int]:
    """What the audit chain says of the terms: the hash, or what names all of a batch's."""
    if isinstance(terms, BatchTerms):
        return {"key_id": terms.key_id, "items": terms.items.hex(), "count": terms.count}
    return {"key_id": terms.key_id, "hash": terms.h.hex()}
