"""Ed25519 signatures by libsodium, called as it is: its binding's checks and copies cost a fifth of a verification."""

from __future__ import annotations

import nacl.bindings  # initialises the library
from nacl._sodium import ffi, lib

PUBLIC_KEY_BYTES = nacl.bindings.crypto_sign_PUBLICKEYBYTES
SECRET_KEY_BYTES = nacl.bindings.crypto_sign_SECRETKEYBYTES
SIGNATURE_BYTES = nacl.bindings.crypto_sign_BYTES


def sign(secret_key: bytes, message: bytes) -> bytes:
    """The 64-byte signature of a 64-byte libsodium secret key."""
    if len(secret_key) != SECRET_KEY_BYTES:
        raise ValueError(f"a secret key has {SECRET_KEY_BYTES} bytes")
    signed = ffi.new("unsigned char[]", SIGNATURE_BYTES + len(message))
    lib.crypto_sign(signed, ffi.NULL, message, len(message), secret_key)
    return bytes(ffi.buffer(signed, SIGNATURE_BYTES))


def verifies(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of a 32-byte public key over `message`; False for lengths that are none."""
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    signed = signature + message
    # The message is known: the library need not hand it back.
    return bool(lib.crypto_sign_open(ffi.NULL, ffi.NULL, signed, len(signed), public_key) == 0)
