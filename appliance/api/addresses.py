"""Addresses of a secp256k1 public key: Ethereum (EIP-55) and Bitcoin P2WPKH (BIP-141, BIP-173).

Give only keys to these functions that `appliance.api.certificates` has verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import coincurve
from Crypto.Hash import RIPEMD160, keccak

from policies.errors import CallerError

BECH32_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
BECH32_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
BITCOIN_PREFIXES = {"mainnet": "bc", "testnet": "tb", "regtest": "bcrt"}


def ethereum_address(public_key: bytes) -> str:
    """The checksummed address of a 33-byte compressed key. Raises `CallerError` if it is no point."""
    digest = _keccak(_point(public_key).format(compressed=False)[1:])
    address = digest[-20:].hex()
    checksum = _keccak(address.encode()).hex()
    return "0x" + "".join(
        letter.upper() if int(nibble, 16) >= 8 else letter for letter, nibble in zip(address, checksum, strict=False)
    )


def p2wpkh_address(public_key: bytes, network: str = "mainnet") -> str:
    """The segwit version 0 address of a 33-byte compressed key, on `mainnet`, `testnet` or `regtest`.

    Raises `CallerError` if it is no point or the network is unknown.
    """
    if network not in BITCOIN_PREFIXES:
        raise CallerError(f"no Bitcoin network {network!r}: use one of {', '.join(BITCOIN_PREFIXES)}")
    hash160 = RIPEMD160.new(hashlib.sha256(_point(public_key).format()).digest()).digest()
    return _bech32(BITCOIN_PREFIXES[network], [0, *_to_base32(hash160)])


def _point(public_key: bytes) -> coincurve.PublicKey:
    try:
        return coincurve.PublicKey(public_key)
    except ValueError:
        raise CallerError("the public key is not a point of secp256k1") from None


def _keccak(data: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=data).digest()


def _to_base32(data: bytes) -> list[int]:
    """The bits of `data` in groups of five; 20 bytes give exactly 32 groups."""
    bits = int.from_bytes(data, "big")
    return [bits >> shift & 31 for shift in range(len(data) * 8 - 5, -1, -5)]


def _bech32(prefix: str, values: list[int]) -> str:
    """Source: BIP-173, reference implementation."""
    expanded = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    polymod = _polymod([*expanded, *values, 0, 0, 0, 0, 0, 0]) ^ 1
    checksum = [polymod >> 5 * (5 - i) & 31 for i in range(6)]
    return prefix + "1" + "".join(BECH32_ALPHABET[value] for value in values + checksum)


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(BECH32_GENERATOR):
            if top >> bit & 1:
                check ^= generator
    return check
