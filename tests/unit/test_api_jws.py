"""Requests are signed as RFC 7797 says: an independent library verifies them."""

from __future__ import annotations

import base64
import json
import pathlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc.errors import BadSignatureError
from joserfc.jwk import ECKey, OKPKey
from joserfc.jws import JWSRegistry, deserialize_compact

from appliance.api.jws import ClientKey, generate_client_key, load_client_key, save_client_key, sign_request
from policies.errors import CallerError

BODY = b'{"kind":"Hash", "spaces" : "kept.with.dots"}'


def signed(key: ClientKey, lifetime_s: int = 120) -> str:
    return sign_request(key, "test", "POST", "/v1/keys", BODY, now_s=1_000, jti="one", lifetime_s=lifetime_s)


@pytest.mark.parametrize("algorithm", ["Ed25519", "ES256"])
def test_the_header_is_exact_and_the_signature_verifies(algorithm: str) -> None:
    key = generate_client_key("alice", algorithm)
    protected, payload, signature = signed(key).split(".")
    assert payload == ""
    header = json.loads(base64.urlsafe_b64decode(protected + "=="))
    assert header == {
        "alg": algorithm,
        "kid": "alice",
        "b64": False,
        "crit": ["b64"],
        "network": "test",
        "method": "POST",
        "path": "/v1/keys",
        "iat": 1000,
        "exp": 1120,
        "jti": "one",
    }
    assert len(base64.urlsafe_b64decode(signature + "==")) == 64


@pytest.mark.parametrize("algorithm", ["Ed25519", "ES256"])
def test_joserfc_verifies_it_over_this_body_alone(algorithm: str) -> None:
    key = generate_client_key("alice", algorithm)
    pem = key.private_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    jwk = ECKey.import_key(pem) if algorithm == "ES256" else OKPKey.import_key(pem)
    registry = JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    assert deserialize_compact(signed(key), jwk, registry=registry, payload=BODY).payload == BODY
    with pytest.raises(BadSignatureError):
        deserialize_compact(signed(key), jwk, registry=registry, payload=BODY + b" ")


@pytest.mark.parametrize("lifetime_s", [0, -1, 301])
def test_lifetimes_that_no_enclave_takes(lifetime_s: int) -> None:
    with pytest.raises(CallerError, match="lives 1 to 300 s"):
        signed(generate_client_key("alice"), lifetime_s)


@pytest.mark.parametrize("algorithm", ["Ed25519", "ES256"])
def test_key_files_come_back_and_are_private(tmp_path: pathlib.Path, algorithm: str) -> None:
    key, path = generate_client_key("alice", algorithm), tmp_path / "alice.pem"
    save_client_key(key, path)
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = load_client_key(path, "alice")
    assert (loaded.algorithm, loaded.public_bytes) == (algorithm, key.public_bytes)
    assert "PRIVATE" not in repr(loaded)
    with pytest.raises(CallerError, match="nothing is overwritten"):
        save_client_key(key, path)
    path.chmod(0o640)
    with pytest.raises(CallerError, match="mode 0640: run chmod 600"):
        load_client_key(path, "alice")


def test_files_that_are_no_client_keys(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CallerError, match="cannot read"):
        load_client_key(tmp_path / "absent.pem", "alice")
    for name, private in [
        ("rsa", rsa.generate_private_key(65537, 2048)),
        ("p384", ec.generate_private_key(ec.SECP384R1())),
    ]:
        path = tmp_path / name
        path.touch(0o600)
        path.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        with pytest.raises(CallerError, match="Ed25519"):
            load_client_key(path, "alice")
    path.write_bytes(b"junk")
    with pytest.raises(CallerError, match="not an unencrypted PEM"):
        load_client_key(path, "alice")
