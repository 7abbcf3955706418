"""How a client signs a request: a detached JWS over the exact body (RFC 7797, `b64: false`).

The protected header holds exactly `alg, kid, b64, crit, network, method, path, iat, exp` and `jti`. Enclaves
check all of it; which algorithm counts comes from their policy file, not from the header.
"""

from __future__ import annotations

import base64
import os
import pathlib
from dataclasses import dataclass
from functools import cached_property

import msgspec
import nacl.bindings
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

from appliance.private_files import read_private
from policies.errors import CallerError
from policies.requests import may_wait
from policies.signed_requests import APPROVE, MAX_APPROVED_S, MAX_LIFETIME_S, SIGNATURE_BYTES

SIGNATURE_HEADER = "Keymoot-Signature"
DEFAULT_LIFETIME_S = 120
JTI_BYTES = 16
MAX_KEY_BYTES = 16 * 1024

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, repr=False)
class ClientKey:
    """A client's private key and the name (`kid`) under which policies know it. Never shows itself."""

    kid: str
    private_key: PrivateKey

    def __post_init__(self) -> None:
        key = self.private_key
        if isinstance(key, ec.EllipticCurvePrivateKey) and not isinstance(key.curve, ec.SECP256R1):
            raise CallerError(f"client key {self.kid} is on {key.curve.name}: use Ed25519 or P-256")

    def __repr__(self) -> str:
        return f"ClientKey(kid={self.kid!r}, alg={self.algorithm!r})"

    @property
    def algorithm(self) -> str:
        """The JWS algorithm of this key: `Ed25519` (RFC 9864) or `ES256`."""
        return "Ed25519" if isinstance(self.private_key, ed25519.Ed25519PrivateKey) else "ES256"

    @property
    def public_bytes(self) -> bytes:
        """The public key: 32 bytes of Ed25519, or the 65-byte uncompressed P-256 point."""
        public = self.private_key.public_key()
        if isinstance(public, ed25519.Ed25519PublicKey):
            return public.public_bytes_raw()
        return public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)

    @cached_property
    def _libsodium_key(self) -> bytes:
        """An Ed25519 key as libsodium wants it, which signs in half of OpenSSL's time."""
        assert isinstance(self.private_key, ed25519.Ed25519PrivateKey)
        return nacl.bindings.crypto_sign_seed_keypair(self.private_key.private_bytes_raw())[1]

    def sign(self, data: bytes) -> bytes:
        """The 64-byte JWS signature of `data`."""
        if isinstance(self.private_key, ed25519.Ed25519PrivateKey):
            return nacl.bindings.crypto_sign(data, self._libsodium_key)[:SIGNATURE_BYTES]
        der = self.private_key.sign(data, ec.ECDSA(hashes.SHA256()))
        r, s = utils.decode_dss_signature(der)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class ProtectedHeader(msgspec.Struct, frozen=True):
    """All that a request's JWS says beside its body, in this order. Times are Unix seconds."""

    alg: str
    kid: str
    b64: bool
    crit: tuple[str, ...]
    network: str
    method: str
    path: str
    iat: int
    exp: int
    jti: str


def sign_request(
    key: ClientKey,
    network: str,
    method: str,
    path: str,
    body: bytes,
    *,
    now_s: int,
    jti: str,
    lifetime_s: int = DEFAULT_LIFETIME_S,
) -> str:
    """The detached JWS (`header..signature`) for one request, good for `lifetime_s`: at most 300 s, or 72 h where it
    may have to wait for approvals, and for an approval itself (method `APPROVE`).

    `jti`: a fresh random name, never used twice. Raises `CallerError` for an impossible lifetime.
    """
    longest_s = MAX_APPROVED_S if method == APPROVE or may_wait(path) else MAX_LIFETIME_S
    if not 0 < lifetime_s <= longest_s:
        raise CallerError(f"a request lives 1 to {longest_s} s, not {lifetime_s}")
    header = ProtectedHeader(
        alg=key.algorithm,
        kid=key.kid,
        b64=False,
        crit=("b64",),
        network=network,
        method=method,
        path=path,
        iat=now_s,
        exp=now_s + lifetime_s,
        jti=jti,
    )
    protected = base64url(msgspec.json.encode(header))
    signature = key.sign(protected.encode() + b"." + body)
    return f"{protected}..{base64url(signature)}"


def new_jti() -> str:
    """A random name for one request, from the operating system's generator."""
    return base64url(os.urandom(JTI_BYTES))


def generate_client_key(kid: str, algorithm: str = "Ed25519") -> ClientKey:
    """A new key for `Ed25519` or `ES256`. Raises `CallerError` for any other algorithm."""
    if algorithm == "Ed25519":
        return ClientKey(kid, ed25519.Ed25519PrivateKey.generate())
    if algorithm == "ES256":
        return ClientKey(kid, ec.generate_private_key(ec.SECP256R1()))
    raise CallerError(f"no client keys for {algorithm}: use Ed25519 or ES256")


def save_client_key(key: ClientKey, path: pathlib.Path) -> None:
    """Write the private key as PEM PKCS#8 to a new file of mode 0600. Raises `CallerError` if it exists or
    cannot be made."""
    from appliance.pki import SECRET_MODE, write_new

    pem = key.private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_new(path, pem, SECRET_MODE)


def load_client_key(path: pathlib.Path, kid: str) -> ClientKey:
    """Read a PEM PKCS#8 key that its owner alone may read.

    Raises `CallerError` where the file is away, open to others (any bit of 077), or holds no Ed25519 or
    P-256 key.
    """
    pem = read_private(path, "client key", MAX_KEY_BYTES)
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise CallerError(f"client key {path} is not an unencrypted PEM PKCS#8 key") from error
    if not isinstance(private, PrivateKey):
        raise CallerError(f"client key {path} is neither Ed25519 nor P-256")
    return ClientKey(kid, private)


def base64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
