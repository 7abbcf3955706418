"""Verification by recovery says the same as OpenSSL, whatever is wrong with a signature."""

from __future__ import annotations

import coincurve
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.derivation import SECP256K1_ORDER
from appliance.api.ecdsa import verifies

scalars = st.integers(1, SECP256K1_ORDER - 1)


def signed(secret: int, h: bytes) -> tuple[bytes, bytes, bytes, int]:
    """Public key, r, s and recid of a signature made by libsecp256k1."""
    key = coincurve.PrivateKey.from_int(secret)
    signature = key.sign_recoverable(h, hasher=None)
    return key.public_key.format(), signature[:32], signature[32:64], signature[64]


def openssl_verifies(public_key: bytes, h: bytes, r: bytes, s: bytes) -> bool:
    der = utils.encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public_key).verify(
            der, h, ec.ECDSA(utils.Prehashed(hashes.SHA256()))
        )
    except InvalidSignature:
        return False
    return True


@given(scalars, st.binary(min_size=32, max_size=32))
def test_what_openssl_accepts_is_accepted(secret: int, h: bytes) -> None:
    public_key, r, s, recid = signed(secret, h)
    assert openssl_verifies(public_key, h, r, s)
    assert verifies(public_key, h, r, s, recid)


@given(scalars, st.binary(min_size=32, max_size=32), st.sampled_from(["h", "r", "s"]), st.integers(0, 255))
def test_what_openssl_refuses_is_refused(secret: int, h: bytes, field: str, bit: int) -> None:
    public_key, r, s, _ = signed(secret, h)
    parts = {"h": h, "r": r, "s": s}
    flipped = int.from_bytes(parts[field], "big") ^ (1 << bit)
    parts[field] = flipped.to_bytes(32, "big")
    assert not openssl_verifies(public_key, **parts)
    assert not any(verifies(public_key, **parts, recid=recid) for recid in range(4))


@given(scalars, scalars, st.binary(min_size=32, max_size=32))
def test_another_key_and_another_recid_are_refused(secret: int, other: int, h: bytes) -> None:
    public_key, r, s, recid = signed(secret, h)
    assert [number for number in range(-1, 6) if verifies(public_key, h, r, s, number)] == [recid]
    stranger = coincurve.PrivateKey.from_int(other).public_key.format()
    assert verifies(stranger, h, r, s, recid) is (stranger == public_key)


def test_a_high_s_is_refused() -> None:
    public_key, r, s, recid = signed(7, bytes(31) + b"\x01")
    high = (SECP256K1_ORDER - int.from_bytes(s, "big")).to_bytes(32, "big")
    assert openssl_verifies(public_key, bytes(31) + b"\x01", r, high)
    assert not verifies(public_key, bytes(31) + b"\x01", r, high, recid ^ 1)


@pytest.mark.parametrize("r", [bytes(32), SECP256K1_ORDER.to_bytes(32, "big"), b"\xff" * 32])
def test_numbers_out_of_range_are_refused(r: bytes) -> None:
    public_key, _, s, recid = signed(7, b"\x02" * 32)
    assert not verifies(public_key, b"\x02" * 32, r, s, recid)
