"""What a client's detached JWS (RFC 7797) says, and what must hold of it besides its signature. Pure.

Enclaves decide by this. A coordinator looks first, so that nobody unknown occupies a place of its own. The protected
header holds exactly `alg, kid, b64, crit, network, method, path, iat, exp, jti`, so that what was signed is what is
carried out: key and path included. The algorithm that counts is the policy's for that client; the header must merely
agree. With so little allowed, the signature is checked directly over RFC 7515's signing input.
"""

from __future__ import annotations

import binascii
from typing import Annotated, TypeVar

import msgspec

from policies.clients import ALGORITHM_NAMES, Client
from policies.errors import Refused
from policies.json_strict import JsonInvalid, decode_as, parse_as
from policies.requests import request_name

MAX_LIFETIME_S = 300
# Of an approval, and of a request that waits for approvals, where a policy asks for them.
MAX_APPROVED_S = 72 * 3600
APPROVE = "APPROVE"
CLOCK_SKEW_S = 30
SIGNATURE_BYTES = 64
# To the alphabet of the decoder; what would only be base64 there becomes what is in none.
_PLAIN = bytes.maketrans(b"-_+/=", b"+/***")

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


class UnverifiedJws(msgspec.Struct, frozen=True):
    """A JWS taken apart. `protected`: the header as encoded; `signature`: 64 bytes, not verified yet."""

    protected: str
    header: ProtectedHeader
    signature: bytes

    def signing_input(self, body: bytes) -> bytes:
        """What the signature must be over."""
        return self.protected.encode() + b"." + body

    def check(
        self, client: Client, *, network: str, method: str, path: str, now_s: int, longest_s: int = MAX_LIFETIME_S
    ) -> None:
        """Whether it is `client`'s, for this network, method and path, and fresh. `longest_s`: for how long it may be
        signed. Raises `Refused`."""
        if method != "POST":
            raise Refused("request/path", "signed for another method or path")
        self._check(client, network, method, path, now_s, longest_s)

    def check_approval(self, client: Client, *, network: str, path: str, now_s: int) -> None:
        """Whether it is `client`'s approval of a request to `path`. An approval is signed for the method `APPROVE`, so
        that it is never a request, and no request an approval. Raises `Refused`."""
        self._check(client, network, APPROVE, path, now_s, MAX_APPROVED_S)

    def _check(self, client: Client, network: str, method: str, path: str, now_s: int, longest_s: int) -> None:
        if self.header.alg not in ALGORITHM_NAMES[client.alg]:
            reason = f"the policy says {client.alg.value} for this client, the header {self.header.alg}"
            raise Refused("request/header", reason)
        header = self.header
        if header.b64 or header.crit != ("b64",):
            raise Refused("request/header", 'b64 must be false and crit ["b64"]')
        if header.network != network:
            raise Refused("request/network", "signed for another network")
        if header.method != method or header.path != path:
            raise Refused("request/path", "signed for another method or path")
        if not 0 < header.exp - header.iat <= longest_s:
            raise Refused("request/lifetime", f"exp must be after iat by at most {longest_s} s")
        if header.iat > now_s + CLOCK_SKEW_S:
            raise Refused("request/time", "signed in the future: check both clocks")
        if header.exp <= now_s:
            raise Refused("request/expired", "the request has expired: sign it again, and check both clocks")


def split_jws(jws: str) -> UnverifiedJws:
    """Take a detached JWS apart. Raises `Refused`, and nothing else, on any text."""
    parts = jws.split(".")
    if len(parts) != 3 or parts[1]:
        raise Refused("request/jws", "not a detached JWS: header, nothing, signature")
    signature = decode_base64url(parts[2])
    if len(signature) != SIGNATURE_BYTES:
        raise Refused("request/jws", f"a signature of {len(signature)} bytes, not {SIGNATURE_BYTES}")
    header = parse_strictly(decode_base64url(parts[0]), ProtectedHeader, "request/header")
    return UnverifiedJws(parts[0], header, signature)


class _NamedHeader(msgspec.Struct, frozen=True):
    kid: Text


class _NamedBody(msgspec.Struct, frozen=True, rename="camel"):
    external_id: Text


def claimed_name(network: str, jws: str, body: bytes) -> bytes | None:
    """The request's name (SPEC 4.10) as it claims to be, unverified; None where it can have none."""
    try:
        header = decode_as(decode_base64url(jws.partition(".")[0]), _NamedHeader)
        return request_name(network, header.kid, decode_as(body, _NamedBody).external_id)
    except (Refused, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def claimed_client(jws: str) -> str:
    """The id of the client that a request claims to be of, unverified; empty where it names none."""
    try:
        return decode_as(decode_base64url(jws.partition(".")[0]), _NamedHeader).kid
    except (Refused, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def claimed_expiry_s(jws: str) -> int:
    """Until when a request claims to be valid (Unix seconds), unverified; 0 where it does not say."""
    try:
        return split_jws(jws).header.exp
    except Refused:
        return 0


def parse_strictly(data: bytes, kind: type[T], rule: str) -> T:
    """`data` as JSON that no two parsers read differently. Raises `Refused` with `rule`, and nothing else."""
    try:
        return parse_as(data, kind)
    except (JsonInvalid, msgspec.DecodeError) as error:
        raise Refused(rule, str(error)[:200]) from None


def decode_base64url(text: str, rule: str = "request/jws") -> bytes:
    """Canonical base64url without padding. Raises `Refused` with `rule`."""
    plain = text.encode("ascii", "replace").translate(_PLAIN) + b"=" * (-len(text) % 4)
    try:
        data = binascii.a2b_base64(plain)
    except binascii.Error:
        raise Refused(rule, "not base64url") from None
    # The decoder passes over what is not of its alphabet; nothing but canonical text is what the encoder writes.
    if not data or binascii.b2a_base64(data, newline=False) != plain:
        raise Refused(rule, "not canonical base64url")
    return data
