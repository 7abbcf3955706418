"""BIP-32's own test vectors, wherever a step is public (non-hardened) derivation."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from enclave.crypto import bip32
from enclave.crypto.curve import SECP256K1
from policies.errors import Refused

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

# (vector, parent, path, child)
VECTORS = {
    "1: m/0' → 1": (
        "xpub68Gmy5EdvgibQVfPdqkBBCHxA5htiqg55crXYuXoQRKfDBFA1WEjWgP6LHhwBZeNK1VTsfTFUHCdrfp1bgwQ9xv5ski8PX9rL2dZXvgGDnw",
        (1,),
        "xpub6ASuArnXKPbfEwhqN6e3mwBcDTgzisQN1wXN9BJcM47sSikHjJf3UFHKkNAWbWMiGj7Wf5uMash7SyYq527Hqck2AxYysAA7xmALppuCkwQ",
    ),
    "1: m/0'/1/2' → 2": (
        "xpub6D4BDPcP2GT577Vvch3R8wDkScZWzQzMMUm3PWbmWvVJrZwQY4VUNgqFJPMM3No2dFDFGTsxxpG5uJh7n7epu4trkrX7x7DogT5Uv6fcLW5",
        (2,),
        "xpub6FHa3pjLCk84BayeJxFW2SP4XRrFd1JYnxeLeU8EqN3vDfZmbqBqaGJAyiLjTAwm6ZLRQUMv1ZACTj37sR62cfN7fe5JnJ7dh8zL4fiyLHV",
    ),
    "1: m/0'/1/2' → 2/1000000000": (
        "xpub6D4BDPcP2GT577Vvch3R8wDkScZWzQzMMUm3PWbmWvVJrZwQY4VUNgqFJPMM3No2dFDFGTsxxpG5uJh7n7epu4trkrX7x7DogT5Uv6fcLW5",
        (2, 1_000_000_000),
        "xpub6H1LXWLaKsWFhvm6RVpEL9P4KfRZSW7abD2ttkWP3SSQvnyA8FSVqNTEcYFgJS2UaFcxupHiYkro49S8yGasTvXEYBVPamhGW6cFJodrTHy",
    ),
    "2: m → 0": (
        "xpub661MyMwAqRbcFW31YEwpkMuc5THy2PSt5bDMsktWQcFF8syAmRUapSCGu8ED9W6oDMSgv6Zz8idoc4a6mr8BDzTJY47LJhkJ8UB7WEGuduB",
        (0,),
        "xpub69H7F5d8KSRgmmdJg2KhpAK8SR3DjMwAdkxj3ZuxV27CprR9LgpeyGmXUbC6wb7ERfvrnKZjXoUmmDznezpbZb7ap6r1D3tgFxHmwMkQTPH",
    ),
}


def parse(xpub: str) -> tuple[bytes, bytes]:
    """Public key (33 bytes) and chain code of an extended public key; its checksum must hold."""
    number = 0
    for letter in xpub:
        number = number * 58 + ALPHABET.index(letter)
    data = number.to_bytes(82, "big")
    body, checksum = data[:-4], data[-4:]
    assert hashlib.sha256(hashlib.sha256(body).digest()).digest()[:4] == checksum
    assert body[:4] == bytes.fromhex("0488b21e")
    return body[45:], body[13:45]


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str) -> None:
    parent, path, child = VECTORS[name]
    public, code = parse(parent)
    derived, tweak = bip32.derive(public, code, path)
    assert derived == parse(child)[0]
    assert SECP256K1.add([public, SECP256K1.generate(tweak)]) == derived


def test_no_path_is_the_key_itself() -> None:
    public, code = parse(VECTORS["2: m → 0"][0])
    assert bip32.derive(public, code, ()) == (public, 0)


def test_the_tweak_is_the_difference_of_the_secrets() -> None:
    """Private derivation by hand: `k_child = k + Σ I_L`."""
    k, code, total = 0x1234567, b"c" * 32, 0
    step_code, step_k = code, k
    for index in (44, 0, 2**31 - 1):
        data = SECP256K1.generate(step_k) + index.to_bytes(4, "big")
        mac = hmac.new(step_code, data, hashlib.sha512).digest()
        step_k = (step_k + int.from_bytes(mac[:32], "big")) % SECP256K1.q
        step_code = mac[32:]
    total = (step_k - k) % SECP256K1.q
    assert bip32.derive(SECP256K1.generate(k), code, (44, 0, 2**31 - 1)) == (SECP256K1.generate(step_k), total)


def test_indices_without_a_child_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`I_L = 0`, `I_L ≥ q`, and a child at infinity: found by no search, so the MAC is given."""
    k = 99
    for left in (0, SECP256K1.q, 2**256 - 1, SECP256K1.q - k):
        monkeypatch.setattr(hmac, "digest", lambda *args, left=left: left.to_bytes(32, "big") + bytes(32))
        with pytest.raises(Refused, match="index 7 has no child key"):
            bip32.derive(SECP256K1.generate(k), bytes(32), (7,))
