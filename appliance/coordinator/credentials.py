"""Who asks: readers by token or client certificate, clients by the signature of their request.

The enclaves alone decide what a client may have. Here it only has to be one, before it takes a place.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from functools import partial

import msgspec
import nacl.bindings
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from nacl.exceptions import BadSignatureError

from appliance.coordinator.config import Reader
from enclave.wire import ClientRequest
from policies.clients import Algorithm, Client
from policies.errors import CallerError, KeymootError, Refused
from policies.requests import may_wait
from policies.signed_requests import MAX_APPROVED_S, MAX_LIFETIME_S, SIGNATURE_BYTES, UnverifiedJws, split_jws

BEARER = "bearer "

Verify = Callable[[bytes, bytes], bool]


class Unauthorized(KeymootError):
    """No credential, or not a good one. `code` is stable."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class Admitted(msgspec.Struct, frozen=True):
    """A request that one of the clients has signed. `expires_s`: until when it is valid, as Unix time."""

    request: ClientRequest
    client: str
    expires_s: int


class Readers:
    """Who may read."""

    def __init__(self, readers: Iterable[Reader]) -> None:
        listed = tuple(readers)
        self._tokens = tuple((bytes.fromhex(one.token_sha256), one.name) for one in listed if one.token_sha256)
        self._certificates = {one.certificate: one.name for one in listed if one.certificate}

    def by_authorization(self, header: str) -> str:
        """The reader whose token `header` shows. Takes as long for every token. Raises `Unauthorized`."""
        if header[: len(BEARER)].lower() != BEARER:
            raise Unauthorized("credential-unknown", "Authorization: use `Bearer` and a token")
        shown = hashlib.sha256(header[len(BEARER) :].strip().encode("utf-8", "surrogateescape")).digest()
        found = ""
        for digest, name in self._tokens:
            if hmac.compare_digest(digest, shown):
                found = name
        if not found:
            raise Unauthorized("credential-unknown", "this token is not one of api.readers in coordinator.yaml")
        return found

    def by_certificate(self, common_name: str | None) -> str | None:
        """The reader of a certificate that TLS has verified; None where it is nobody's."""
        return None if common_name is None else self._certificates.get(common_name)


class ClientKeys:
    """The clients that may send signed requests, with their public keys."""

    def __init__(self, clients: Iterable[Client], network: str) -> None:
        self._clients = {client.id: (client, _verifier(client)) for client in clients}
        self._network = network

    def look(self, jws: str, path: str, now_s: int) -> UnverifiedJws:
        """All that the header says is good, and its client is known: worth reading the body for. Raises `Refused`."""
        parts = split_jws(jws)
        known = self._clients.get(parts.header.kid)
        if known is None:
            raise Refused("request/client", "no client with this kid is listed in the coordinator's clients file")
        # Whether the policies want this one approved, its signers know.
        longest_s = MAX_APPROVED_S if may_wait(path) else MAX_LIFETIME_S
        parts.check(known[0], network=self._network, method="POST", path=path, now_s=now_s, longest_s=longest_s)
        return parts

    def check_approval(self, jws: str, path: str, body: bytes, now_s: int) -> str:
        """The client whose approval of a request to `path` it is. Raises `Refused`."""
        parts = split_jws(jws)
        known = self._clients.get(parts.header.kid)
        if known is None:
            raise Refused("request/client", "no client with this kid is listed in the coordinator's clients file")
        parts.check_approval(known[0], network=self._network, path=path, now_s=now_s)
        return self.verify(parts, body)

    def verify(self, jws: UnverifiedJws, body: bytes) -> str:
        """The client whose signature over `body` it is. Raises `Refused`."""
        client, verifies = self._clients[jws.header.kid]
        if not verifies(jws.signature, jws.signing_input(body)):
            raise Refused("request/signature", "the JWS does not verify over this body")
        return client.id


def _verifier(client: Client) -> Verify:
    key = client.key_bytes
    if client.alg is Algorithm.ED25519:
        return partial(_verify_ed25519, key)
    try:
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
    except ValueError:
        raise CallerError(f"client {client.id}: public_key is not a point of P-256") from None
    return partial(_verify_es256, point)


def _verify_ed25519(key: bytes, signature: bytes, data: bytes) -> bool:
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        nacl.bindings.crypto_sign_open(signature + data, key)
    except (BadSignatureError, ValueError):
        return False
    return True


def _verify_es256(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True
