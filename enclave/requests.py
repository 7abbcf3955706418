"""A client's signed request: the detached JWS over the exact body, verified; then the body, parsed.

What a JWS must say is in `policies.signed_requests`; here are the signature and this enclave's boot.
"""

from __future__ import annotations

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from enclave.crypto import ed25519
from enclave.errors import Refused
from enclave.wire import ClientRequest
from policies.clients import Algorithm, Client
from policies.model import Policy
from policies.requests import HashBatch, KeyCreation, SigningBody, may_wait
from policies.signed_requests import MAX_LIFETIME_S, parse_strictly, split_jws


class GivenApproval(msgspec.Struct, frozen=True):
    """An approval that verified: whose it is, when it was signed and until when (Unix seconds)."""

    client: Client
    given_s: int
    expires_at_s: int

    @property
    def id(self) -> str:
        """The approver's."""
        return self.client.id


class VerifiedRequest(msgspec.Struct, frozen=True):
    """A request that a client of the policy signed for this network, method and path, and that is fresh.

    `body` is still the client's bytes: parse them. `approvers`: other clients whose approvals of it verify (SPEC 4.13).
    `lifetime_s`: for how long it was signed.
    """

    client: Client
    jti: str
    expires_at_s: int
    body: bytes
    approvers: tuple[GivenApproval, ...] = ()
    lifetime_s: int = 0

    @property
    def client_id(self) -> str:
        """Whose it is."""
        return self.client.id

    @property
    def approver_ids(self) -> tuple[str, ...]:
        """Whose approvals of it verify."""
        return tuple([approval.client.id for approval in self.approvers])


def verify_request(
    request: ClientRequest, *, policy: Policy, network: str, now_s: int, boot_s: int, present_s: int | None = None
) -> VerifiedRequest:
    """Verify everything but the body's meaning. `boot_s`: requests signed before this boot are refused, since what
    was done with them is not remembered. `present_s`: at which approvals must be valid, where `now_s` is when the
    request came. Raises `Refused` with a rule `request/…`, and nothing else."""
    jws = split_jws(request.jws)
    client = policy.client(jws.header.kid)
    if client is None:
        raise Refused("request/client", "the policy knows no client with this kid")
    longest_s = policy.longest_s if may_wait(request.path) else MAX_LIFETIME_S
    jws.check(client, network=network, method=request.method, path=request.path, now_s=now_s, longest_s=longest_s)
    if jws.header.iat < boot_s:
        raise Refused(
            "request/boot", "signed before this enclave's start, or before its clock was set back: sign it again"
        )
    if not verifies(client, jws.signing_input(request.body), jws.signature):
        raise Refused("request/signature", "the JWS does not verify over this body")
    approvers: tuple[GivenApproval, ...] = ()
    if request.approvals:
        approvers = _approvers(request, policy, network, now_s if present_s is None else present_s)
    lifetime_s = jws.header.exp - jws.header.iat
    return VerifiedRequest(client, jws.header.jti, jws.header.exp, request.body, approvers, lifetime_s)


def _approvers(request: ClientRequest, policy: Policy, network: str, now_s: int) -> tuple[GivenApproval, ...]:
    """The approvals that verify, of each client the newest. One that does not is as if it were not there."""
    # SPEC 4.13
    found: dict[str, GivenApproval] = {}
    for approval in request.approvals:
        try:
            jws = split_jws(approval)
            client = policy.client(jws.header.kid)
            if client is not None and (client.id not in found or found[client.id].given_s < jws.header.iat):
                jws.check_approval(client, network=network, path=request.path, now_s=now_s)
                if verifies(client, jws.signing_input(request.body), jws.signature):
                    found[client.id] = GivenApproval(client, jws.header.iat, jws.header.exp)
        except Refused:
            continue
    return tuple(found.values())


def parse_signing_body(request: VerifiedRequest) -> SigningBody:
    """The body of `POST /v1/keys/{id}/signatures`. Raises `Refused`."""
    return parse_strictly(request.body, SigningBody, "request/body")  # type: ignore[arg-type]


def parse_hash_batch(request: VerifiedRequest) -> HashBatch:
    """The body of `POST /v1/keys/{id}/signature-batches`. Raises `Refused`."""
    return parse_strictly(request.body, HashBatch, "request/body")


def parse_key_creation(request: VerifiedRequest) -> KeyCreation:
    """The body of `POST /v1/keys`. Raises `Refused`."""
    return parse_strictly(request.body, KeyCreation, "request/body")


def verifies(client: Client, signing_input: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) is that of `client`'s key over `signing_input`."""
    if client.alg is Algorithm.ED25519:
        return ed25519.verifies(client.key_bytes, signing_input, signature)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), client.key_bytes)
        key.verify(utils.encode_dss_signature(r, s), signing_input, ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True
