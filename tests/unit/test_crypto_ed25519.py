"""Ed25519 as the enclave calls it, against another library."""

from __future__ import annotations

import nacl.bindings
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave.crypto import ed25519

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
POINT = KEY.public_key().public_bytes_raw()
MESSAGES = (b"", b"m", bytes(32), b"x" * 10_000)


@pytest.mark.parametrize("message", MESSAGES)
def test_both_libraries_agree(message: bytes) -> None:
    _, secret = nacl.bindings.crypto_sign_seed_keypair(bytes(range(32)))
    assert ed25519.sign(secret, message) == KEY.sign(message)
    assert ed25519.verifies(POINT, message, KEY.sign(message))


@pytest.mark.parametrize("message", MESSAGES)
def test_one_bit_is_enough_to_fail(message: bytes) -> None:
    signature = KEY.sign(message)
    for place in range(64):
        assert not ed25519.verifies(POINT, message, flipped(signature, place))
    for place in range(32):
        assert not ed25519.verifies(flipped(POINT, place), message, signature)
    for place in range(0, len(message), 1001):
        assert not ed25519.verifies(POINT, flipped(message, place), signature)
    assert not ed25519.verifies(POINT, message + b"\0", signature)


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_a_secret_key_of_another_length_signs_nothing(length: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        ed25519.sign(bytes(length), b"message")


@pytest.mark.parametrize("length", [0, 1, 31, 33, 63, 65])
def test_other_lengths_verify_nothing(length: int) -> None:
    """Whatever else they hold: a byte of the signature is none of the message, nor the other way round."""
    signature, message = KEY.sign(b"message"), b"message"
    signed = signature + message
    assert not ed25519.verifies(POINT, signed[length:], signed[:length])
    assert not ed25519.verifies((POINT + bytes(64))[:length], message, signature)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
