"""Public derivation against the vectors of BIP-32, and addresses against published ones."""

from __future__ import annotations

import coincurve
import pytest

from appliance.api.addresses import ethereum_address, p2wpkh_address
from appliance.api.derivation import derive
from policies.errors import CallerError

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

# BIP-32, test vectors 1 to 3: (parent xpub, index, child xpub) for every public step there is
STEPS = [
    (
        "xpub68Gmy5EdvgibQVfPdqkBBCHxA5htiqg55crXYuXoQRKfDBFA1WEjWgP6LHhwBZeNK1VTsfTFUHCdrfp1bgwQ9xv5ski8PX9rL2dZXvgGDnw",
        1,
        "xpub6ASuArnXKPbfEwhqN6e3mwBcDTgzisQN1wXN9BJcM47sSikHjJf3UFHKkNAWbWMiGj7Wf5uMash7SyYq527Hqck2AxYysAA7xmALppuCkwQ",
    ),
    (
        "xpub661MyMwAqRbcFW31YEwpkMuc5THy2PSt5bDMsktWQcFF8syAmRUapSCGu8ED9W6oDMSgv6Zz8idoc4a6mr8BDzTJY47LJhkJ8UB7WEGuduB",
        0,
        "xpub69H7F5d8KSRgmmdJg2KhpAK8SR3DjMwAdkxj3ZuxV27CprR9LgpeyGmXUbC6wb7ERfvrnKZjXoUmmDznezpbZb7ap6r1D3tgFxHmwMkQTPH",
    ),
]


def test_vectors_of_bip_32() -> None:
    for parent, index, child in STEPS:
        key, code = parse_xpub(parent)
        expected, _ = parse_xpub(child)
        derived, tweak = derive(key, code, [index])
        assert derived == expected
        assert coincurve.PublicKey(key).add(tweak.to_bytes(32, "big")).format() == expected


def test_a_path_is_its_steps_and_its_tweak_their_sum() -> None:
    key, code = parse_xpub(STEPS[0][0])
    assert derive(key, code, []) == (key, 0)
    child, tweak = derive(key, code, [1, 7, 2**31 - 1])
    assert coincurve.PublicKey(key).add(tweak.to_bytes(32, "big")).format() == child
    assert child != derive(key, code, [7, 1, 2**31 - 1])[0]


@pytest.mark.parametrize("path", [[2**31], [-1], [0] * 11])
def test_paths_that_have_no_public_child(path: list[int]) -> None:
    key, code = parse_xpub(STEPS[0][0])
    with pytest.raises(CallerError):
        derive(key, code, path)


@pytest.mark.parametrize("key", [b"\x02" + bytes(31) + b"\x05", bytes(33), b"\x02" * 32])
def test_what_is_no_key(key: bytes) -> None:
    with pytest.raises(CallerError):
        derive(key, bytes(32), [0])


def test_ethereum_address_of_a_known_key() -> None:
    """The widely published address of private key 0x4646…46 (EIP-155's example)."""
    key = coincurve.PrivateKey(bytes.fromhex("46" * 32)).public_key.format()
    assert ethereum_address(key) == "0x9d8A62f656a8d1615C1294fd71e9CFb3E4855A4F"


def test_ethereum_addresses_against_eth_account() -> None:
    eth_account = pytest.importorskip("eth_account")
    for number in range(1, 30):
        secret = number.to_bytes(32, "big")
        expected = eth_account.Account.from_key(secret).address
        assert ethereum_address(coincurve.PrivateKey(secret).public_key.format()) == expected


def test_p2wpkh_address_of_bip_173() -> None:
    """BIP-173's examples: the key of generator G."""
    key = coincurve.PrivateKey((1).to_bytes(32, "big")).public_key.format()
    assert p2wpkh_address(key) == "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
    assert p2wpkh_address(key, "testnet") == "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx"
    with pytest.raises(CallerError, match="no Bitcoin network"):
        p2wpkh_address(key, "signet2")


def parse_xpub(text: str) -> tuple[bytes, bytes]:
    """Key and chain code of a base58 extended public key."""
    number = 0
    for letter in text:
        number = number * 58 + BASE58.index(letter)
    data = number.to_bytes(82, "big")
    return data[45:78], data[13:45]
