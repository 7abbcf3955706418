"""Clients' signed requests: an independent JWS library's are accepted, and nothing that differs in anything."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OKPKey
from joserfc.jws import JWSRegistry, serialize_compact

from enclave.errors import Refused
from enclave.requests import VerifiedRequest, parse_key_creation, parse_signing_body, verify_request
from enclave.wire import ClientRequest
from policies.clients import Algorithm, Client
from policies.model import Policy
from policies.requests import KEYS_PATH, BitcoinBip143Preimage, Hash, KeyCreation
from policies.signed_requests import decode_base64url

ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
P256 = ec.derive_private_key(5, ec.SECP256R1())
NOW_S, BOOT_S = 1_700_000_000, 1_699_999_000
BODY = json.dumps(
    {"scheme": "ECDSA", "curve": "secp256k1", "signers": 3, "tolerate": 1, "label": "a/b", "externalId": "1"}
).encode()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


POLICY = Policy(
    1,
    (
        Client("ed", Algorithm.ED25519, b64(ED25519.public_key().public_bytes_raw())),
        Client(
            "p256",
            Algorithm.ES256,
            b64(P256.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)),
        ),
    ),
    (),
)
HEADER: dict[str, Any] = {
    "alg": "Ed25519", "kid": "ed", "b64": False, "crit": ["b64"], "network": "net", "method": "POST",
    "path": KEYS_PATH, "iat": NOW_S, "exp": NOW_S + 300, "jti": "0123456789abcdef",
}  # fmt: skip
P256_HEADER = HEADER | {"alg": "ES256", "kid": "p256"}


def signed_text(header: str, body: bytes = BODY) -> ClientRequest:
    """A request with any header text, signed by the Ed25519 client."""
    protected = b64(header.encode())
    signature = ED25519.sign(protected.encode() + b"." + body)
    return ClientRequest("POST", KEYS_PATH, body, f"{protected}..{b64(signature)}")


def signed(header: dict[str, Any], body: bytes = BODY) -> ClientRequest:
    return signed_text(json.dumps(header), body)


def verify(request: ClientRequest, now_s: int = NOW_S, boot_s: int = BOOT_S) -> VerifiedRequest:
    return verify_request(request, policy=POLICY, network="net", now_s=now_s, boot_s=boot_s)


def refusal(request: ClientRequest, **times: int) -> str:
    with pytest.raises(Refused) as caught:
        verify(request, **times)
    return caught.value.rule


# Clients of before RFC 9864 say EdDSA.
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("alg", ["Ed25519", "EdDSA", "ES256"])
def test_what_joserfc_signs_is_accepted(alg: str) -> None:
    header = (P256_HEADER if alg == "ES256" else HEADER) | {"alg": alg}
    # joserfc knows only registered parameters unless told, and takes a bytes-like key of its own.
    registry = JWSRegistry(algorithms=[alg], strict_check_header=False)
    key: Any = ECKey.import_key(P256) if alg == "ES256" else OKPKey.import_key(ED25519)
    jws = serialize_compact(header, BODY, key, registry=registry)
    verified = verify(ClientRequest("POST", KEYS_PATH, BODY, jws))
    assert (verified.client_id, verified.jti) == (header["kid"], "0123456789abcdef")
    assert (verified.expires_at_s, verified.body) == (NOW_S + 300, BODY)


@pytest.mark.parametrize("missing", list(HEADER))
def test_every_header_member_is_required(missing: str) -> None:
    assert refusal(signed({k: v for k, v in HEADER.items() if k != missing})) == "request/header"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"typ": "JOSE"}, "request/header"),
        ({"jwk": {}}, "request/header"),
        ({"alg": "none"}, "request/header"),
        ({"alg": "HS256"}, "request/header"),
        ({"alg": "ES256"}, "request/header"),
        ({"alg": "ed25519"}, "request/header"),
        ({"kid": "p256"}, "request/header"),
        ({"kid": "stranger"}, "request/client"),
        ({"kid": ""}, "request/header"),
        ({"b64": True}, "request/header"),
        ({"b64": 0}, "request/header"),
        ({"crit": []}, "request/header"),
        ({"crit": ["b64", "b64"]}, "request/header"),
        ({"crit": ["b64", "exp"]}, "request/header"),
        ({"crit": "b64"}, "request/header"),
        ({"network": "other"}, "request/network"),
        ({"method": "PUT"}, "request/path"),
        ({"method": "post"}, "request/path"),
        ({"path": KEYS_PATH + "/"}, "request/path"),
        ({"iat": NOW_S - 1}, "request/lifetime"),
        ({"exp": NOW_S}, "request/lifetime"),
        ({"exp": NOW_S - 5, "iat": NOW_S}, "request/lifetime"),
        ({"iat": float(NOW_S)}, "request/header"),
        ({"iat": str(NOW_S)}, "request/header"),
        ({"exp": True}, "request/header"),
        ({"exp": 10**40}, "request/header"),
        ({"iat": -1}, "request/header"),
        ({"jti": "short"}, "request/header"),
        ({"jti": "x" * 65}, "request/header"),
        ({"jti": None}, "request/header"),
    ],
)
def test_wrong_headers_although_signed(change: dict[str, Any], rule: str) -> None:
    assert refusal(signed(HEADER | change)) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        json.dumps(HEADER) + " x",
        json.dumps(HEADER)[:-1] + ', "kid": "ed"}',
        json.dumps(HEADER)[:-1] + ', "k\\u0069d": "ed"}',
        json.dumps(HEADER).replace("1700000300", "NaN"),
        "\ufeff" + json.dumps(HEADER),
        json.dumps(HEADER).replace('"0123456789abcdef"', '"\\ud800' + "0" * 16 + '"'),
        "[" * 2500,
    ],
)
def test_headers_that_are_no_strict_json(text: str) -> None:
    assert refusal(signed_text(text)) in ("request/header", "request/jws")


def test_the_signed_path_and_method_must_be_the_requests() -> None:
    request = signed(HEADER)
    assert refusal(msgspec.structs.replace(request, path=KEYS_PATH + "/x")) == "request/path"
    assert refusal(msgspec.structs.replace(request, method="PUT")) == "request/path"
    both = msgspec.structs.replace(signed(HEADER | {"method": "GET"}), method="GET")
    assert refusal(both) == "request/path"


def test_times() -> None:
    request = signed(HEADER)
    verify(request, now_s=NOW_S + 299)
    assert refusal(request, now_s=NOW_S + 301) == "request/expired"
    verify(request, now_s=NOW_S - 30)
    assert refusal(request, now_s=NOW_S - 31) == "request/time"
    verify(request, boot_s=NOW_S)
    assert refusal(request, boot_s=NOW_S + 1) == "request/boot"


def test_every_byte_of_the_body_is_signed() -> None:
    request = signed(HEADER)
    for at in range(len(BODY)):
        body = BODY[:at] + bytes([BODY[at] ^ 1]) + BODY[at + 1 :]
        assert refusal(msgspec.structs.replace(request, body=body)) == "request/signature"
    for body in (b"", BODY + b" ", b" " + BODY):
        assert refusal(msgspec.structs.replace(request, body=body)) == "request/signature"


def test_no_bytes_move_between_header_and_body() -> None:
    """The signing input is `header.body`: base64url has no dot, so the border can't move."""
    request = signed(HEADER, b"a.b" + BODY)
    protected, _, signature = request.jws.split(".")
    moved = ClientRequest("POST", KEYS_PATH, b"b" + BODY, f"{protected}.a..{signature}")
    assert refusal(moved) == "request/jws"


def test_forms_of_a_jws() -> None:
    protected, _, signature = signed(HEADER).jws.split(".")
    attached = f"{protected}.{b64(BODY)}.{signature}"
    no_tail = {"A": "B", "Q": "R", "g": "h", "w": "x"}
    stray_bits = signature[:-1] + no_tail[signature[-1]]
    for jws in (
        attached, "", ".", "..", f"{protected}..", f"..{signature}", f"{protected}.{signature}",
        f"{protected}..{signature}.", f"{protected}..{signature}=", f"{protected}..{signature}==",
        f"{protected}=..{signature}", f" {protected}..{signature}", f"{protected}..{signature}\n",
        f"{protected}..{stray_bits}", f"{protected}..{signature[:-2]}", f"{protected}..{signature}AA",
        f"{protected}..{signature[:-1]}é", f"{protected}..+{signature[1:]}",
    ):  # fmt: skip
        assert refusal(ClientRequest("POST", KEYS_PATH, BODY, jws)) in ("request/jws", "request/header")
    assert refusal(ClientRequest("POST", KEYS_PATH, BODY, f"{protected}..{b64(bytes(64))}")) == "request/signature"


def test_another_clients_key_does_not_sign_for_this_one() -> None:
    protected = b64(json.dumps(HEADER).encode())
    forged = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x02" * 32).sign(protected.encode() + b"." + BODY)
    assert refusal(ClientRequest("POST", KEYS_PATH, BODY, f"{protected}..{b64(forged)}")) == "request/signature"


def test_es256_signatures_out_of_range() -> None:
    protected = b64(json.dumps(P256_HEADER).encode())
    r, s = utils.decode_dss_signature(P256.sign(protected.encode() + b"." + BODY, ec.ECDSA(SHA256())))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

    def with_signature(r: int, s: int) -> ClientRequest:
        signature = b64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        return ClientRequest("POST", KEYS_PATH, BODY, f"{protected}..{signature}")

    verify(with_signature(r, s))
    for bad in ((0, s), (r, 0), (0, 0), (order, s), (r, order), (2**256 - 1, 2**256 - 1), (s, r)):
        assert refusal(with_signature(*bad)) == "request/signature"


def test_two_signatures_over_the_same_are_the_same_request() -> None:
    """ECDSA has more than one valid signature: a second one must not get past what is remembered of the first."""
    protected = b64(json.dumps(P256_HEADER).encode())
    digests = set()
    for _ in range(2):
        r, s = utils.decode_dss_signature(P256.sign(protected.encode() + b"." + BODY, ec.ECDSA(SHA256())))
        signature = b64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        request = ClientRequest("POST", KEYS_PATH, BODY, f"{protected}..{signature}")
        verify(request)
        digests.add(request.digest("net"))
    assert len(digests) == 1
    assert signed(HEADER).digest("net") != signed(HEADER | {"jti": "f" * 16}).digest("net")
    assert signed(HEADER).digest("net") != signed(HEADER, BODY + b" ").digest("net")


# --- Bodies ---


def body_of(data: bytes) -> VerifiedRequest:
    return verify(signed(HEADER, data))


def test_bodies() -> None:
    assert parse_key_creation(body_of(BODY)) == KeyCreation("ECDSA", "secp256k1", 3, 1, "a/b", "1")
    bare = {"kind": "Hash", "hash": "0x" + "ab" * 32, "externalId": "1", "derivationPath": [0, 5]}
    assert parse_signing_body(body_of(json.dumps(bare).encode())) == Hash("0x" + "ab" * 32, "1", (0, 5))
    segwit = {"kind": "BitcoinBip143Preimage", "preimage": "0xab", "externalId": "1"}
    assert parse_signing_body(body_of(json.dumps(segwit).encode())) == BitcoinBip143Preimage("0xab", "1")


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind": "Hash", "hash": "0x%s", "externalId": "1", "externalId": "1"}' % (b"ab" * 32),
        b'{"kind": "Hash", "kind": "Hash", "hash": "0x%s", "externalId": "1"}' % (b"ab" * 32),
        b'{"kind": "Hash", "hash": "0x%s", "externalId": "1", "extra": 1}' % (b"ab" * 32),
        b'{"kind": "Hash", "hash": "0x%s", "externalId": "1"}' % (b"AB" * 32),
        b'{"kind": "Hash", "hash": "0x%s", "externalId": "1"}' % (b"ab" * 31),
        b'{"kind": "Hash", "hash": "0x%s\\n", "externalId": "1"}' % (b"ab" * 32),
        b'{"kind": "Hash", "hash": "0x%s", "externalId": "1\\n"}' % (b"ab" * 32),
        b'{"kind": "Hash", "hash": "0x%s", "externalId": "1", "derivationPath": [-1]}' % (b"ab" * 32),
        b'{"kind": "Hash", "hash": "0x%s", "externalId": "1", "derivationPath": [2147483648]}' % (b"ab" * 32),
        b'{"kind": "Hash", "hash": "0x%s", "externalId": "1", "derivationPath": [1.0]}' % (b"ab" * 32),
        b'{"kind": "Hash", "hash": "0x%s", "externalId": "1", "derivationPath": ["0"]}' % (b"ab" * 32),
        b'{"kind": "Hash", "hash": "0x%s", "externalId": "1", "derivationPath": [0%s]}' % (b"ab" * 32, b",0" * 10),
        b'{"kind": "Message", "message": "0xab", "externalId": "1"}',
        b'{"hash": "0x%s", "externalId": "1"}' % (b"ab" * 32),
        b'{"kind": "EthereumTransaction", "transaction": "0xabc", "externalId": "1"}',
        b"[]",
        b"",
        b"\xff",
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_signing_bodies_that_are_refused(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse_signing_body(body_of(body))
    assert caught.value.rule == "request/body"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"a/b"', b'"a/b\\n"'),
        (b'"a/b"', b'"/a"'),
        (b'"a/b"', b'""'),
        (b'"a/b"', b'"a b"'),
        (b"3", b"2"),
        (b"ECDSA", b"EdDSA"),
        (b"secp256k1", b"secp256r1"),
        (b'"signers": 3', b'"signers": 3, "signers": 3'),
        (b'"signers": 3', b'"signers": 3, "policy": "mine"'),
    ],
)
def test_creation_bodies_that_are_refused(old: bytes, new: bytes) -> None:
    assert old in BODY
    with pytest.raises(Refused) as caught:
        parse_key_creation(body_of(BODY.replace(old, new, 1)))
    assert caught.value.rule == "request/body"


@given(st.text(max_size=80), st.binary(max_size=80))
def test_any_jws_and_body_verify_or_are_refused(jws: str, body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        verify(ClientRequest("POST", KEYS_PATH, body, jws))
    assert caught.value.rule.startswith("request/")
    with pytest.raises(Refused) as caught:
        parse_signing_body(VerifiedRequest("ed", "j", 0, body))
    assert caught.value.rule == "request/body"


@given(st.text(alphabet="AQgw-_+/=* \né\u2028", max_size=9) | st.binary(max_size=9).map(b64))
def test_base64url_is_read_of_one_text_only(text: str) -> None:
    data = b""
    if re.fullmatch("[A-Za-z0-9_-]+", text) and len(text) % 4 != 1:
        data = base64.urlsafe_b64decode(text + "==")
    if data and b64(data) == text:
        assert decode_base64url(text) == data
    else:
        with pytest.raises(Refused, match="base64url") as refused:
            decode_base64url(text, "stop/jws")
        assert refused.value.rule == "stop/jws"
