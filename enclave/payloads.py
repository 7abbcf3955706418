"""Payloads, parsed by `policies.payloads` and hashed here with the library's Keccak-256."""

from __future__ import annotations

from Crypto.Hash import keccak

from policies.payloads import Payload
from policies.payloads import decode_payload as _decode
from policies.requests import SigningBody

__all__ = ["Payload", "decode_payload", "keccak256"]


def keccak256(data: bytes) -> bytes:
    """Keccak-256 with Ethereum's padding, which is not SHA3-256's."""
    return keccak.new(digest_bits=256, data=data).digest()


def decode_payload(body: SigningBody) -> Payload:
    """The payload of a parsed body. Raises `Refused` with a rule `payload/…`, and nothing else."""
    return _decode(body, keccak256)
