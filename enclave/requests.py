"""A client's signed request: the detached JWS over the exact body (RFC 7797), verified; then the body, parsed.

The protected header holds exactly `alg, kid, b64, crit, network, method, path, iat, exp, jti`, so that what was signed
is what is carried out: key and path included. The algorithm that counts is the policy's for that client; the header
must merely agree. With so little allowed, the signature is checked here directly over RFC 7515's signing input.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
import nacl.bindings
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from nacl.exceptions import BadSignatureError

from enclave.errors import Refused
from enclave.json_strict import JsonInvalid, parse_json
from enclave.wire import ClientRequest
from policies.model import Algorithm, Client, Policy
from policies.requests import HashBatch, KeyCreation, SigningBody

MAX_LIFETIME_S = 300
CLOCK_SKEW_S = 30
SIGNATURE_BYTES = 64
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_NAMES = {Algorithm.ED25519: ("Ed25519", "EdDSA"), Algorithm.ES256: ("ES256",)}

T = TypeVar("T")
Seconds = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class ProtectedHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly these members; times in Unix seconds."""

    alg: Text
    kid: Text
    b64: bool
    crit: tuple[str, ...]
    network: Text
    method: Text
    path: Text
    iat: Seconds
    exp: Seconds
    jti: Annotated[str, msgspec.Meta(min_length=16, max_length=64)]


@dataclass(frozen=True)
class VerifiedRequest:
    """A request that a client of the policy signed for this network, method and path, and that is fresh.

    `digest`: 32 bytes that name it. `body` is still the client's bytes: parse them.
    """

    client_id: str
    jti: str
    expires_at_s: int
    body: bytes
    digest: bytes


def verify_request(request: ClientRequest, *, policy: Policy, network: str, now_s: int, boot_s: int) -> VerifiedRequest:
    """Verify everything but the body's meaning. `boot_s`: requests signed before this boot are refused, since what
    was done with them is not remembered. Raises `Refused` with a rule `request/…`, and nothing else."""
    protected, signature = _split(request.jws)
    header = _parse(_decode(protected), ProtectedHeader, "request/header")
    client = policy.client(header.kid)
    if client is None:
        raise Refused("request/client", "the policy knows no client with this kid")
    if header.alg not in _NAMES[client.alg]:
        raise Refused("request/header", f"the policy says {client.alg.value} for this client, the header {header.alg}")
    _check_header(header, request, network)
    _check_times(header, now_s, boot_s)
    if not _verifies(client, protected.encode() + b"." + request.body, signature):
        raise Refused("request/signature", "the JWS does not verify over this body")
    return VerifiedRequest(client.id, header.jti, header.exp, request.body, request.digest(network))


def parse_signing_body(request: VerifiedRequest) -> SigningBody:
    """The body of `POST /v1/keys/{id}/signatures`. Raises `Refused`."""
    return _parse(request.body, SigningBody, "request/body")  # type: ignore[arg-type]


def parse_hash_batch(request: VerifiedRequest) -> HashBatch:
    """The body of `POST /v1/keys/{id}/signature-batches`. Raises `Refused`."""
    return _parse(request.body, HashBatch, "request/body")


def parse_key_creation(request: VerifiedRequest) -> KeyCreation:
    """The body of `POST /v1/keys`. Raises `Refused`."""
    return _parse(request.body, KeyCreation, "request/body")


def _split(jws: str) -> tuple[str, bytes]:
    parts = jws.split(".")
    if len(parts) != 3 or parts[1]:
        raise Refused("request/jws", "not a detached JWS: header, nothing, signature")
    signature = _decode(parts[2])
    if len(signature) != SIGNATURE_BYTES:
        raise Refused("request/jws", f"a signature of {len(signature)} bytes, not {SIGNATURE_BYTES}")
    return parts[0], signature


def _check_header(header: ProtectedHeader, request: ClientRequest, network: str) -> None:
    if header.b64 or header.crit != ("b64",):
        raise Refused("request/header", 'b64 must be false and crit ["b64"]')
    if header.network != network:
        raise Refused("request/network", "signed for another network")
    if (header.method, header.path) != (request.method, request.path) or header.method != "POST":
        raise Refused("request/path", "signed for another method or path")


def _check_times(header: ProtectedHeader, now_s: int, boot_s: int) -> None:
    if not 0 < header.exp - header.iat <= MAX_LIFETIME_S:
        raise Refused("request/lifetime", f"exp must be after iat by at most {MAX_LIFETIME_S} s")
    if header.iat > now_s + CLOCK_SKEW_S:
        raise Refused("request/time", "signed in the future: check the client's clock")
    if header.exp <= now_s:
        raise Refused("request/expired", "the request has expired: sign it again")
    if header.iat < boot_s:
        raise Refused("request/boot", "signed before this enclave's start: sign it again")


def _verifies(client: Client, signing_input: bytes, signature: bytes) -> bool:
    if client.alg is Algorithm.ED25519:
        try:
            nacl.bindings.crypto_sign_open(signature + signing_input, client.key_bytes)
        except (BadSignatureError, ValueError):
            return False
        return True
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), client.key_bytes)
        key.verify(utils.encode_dss_signature(r, s), signing_input, ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True


def _parse(data: bytes, kind: type[T], rule: str) -> T:
    try:
        parse_json(data)
        return msgspec.json.decode(data, type=kind)
    except (JsonInvalid, msgspec.DecodeError) as error:
        raise Refused(rule, str(error)[:200]) from None


def _decode(text: str) -> bytes:
    """Canonical base64url without padding."""
    if not _BASE64URL.fullmatch(text):
        raise Refused("request/jws", "not base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise Refused("request/jws", "not base64url") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise Refused("request/jws", "not canonical base64url")
    return data
