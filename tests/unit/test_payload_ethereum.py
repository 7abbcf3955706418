"""Ethereum payloads: the hash that eth-account signs, and one accepted encoding for each transaction."""

from __future__ import annotations

from typing import Any

import pytest
import rlp
from eth_account import Account
from eth_account.typed_transactions import DynamicFeeTransaction  # type: ignore[attr-defined]
from eth_keys import keys  # type: ignore[attr-defined]
from eth_utils import to_checksum_address  # type: ignore[attr-defined]

from enclave.errors import Refused
from enclave.payloads import decode_payload, keccak256
from policies.decoded import AccessEntry, EthereumDecoded
from policies.model import Kind
from policies.payloads import ethereum
from policies.payloads import rlp as strict_rlp
from policies.requests import EthereumTransaction, Hash
from tests.fakes.payloads import (
    EIP_2930_FIELDS,
    FIELDS,
    LEGACY_FIELDS,
    TO,
    eip2930_transaction,
    encoded_transaction,
    legacy_transaction,
)

ACCESS_LIST = [{"address": "0x" + "11" * 20, "storageKeys": ["0x" + "22" * 32]}]


def parse_transaction(data: bytes) -> tuple[bytes, EthereumDecoded]:
    return ethereum.parse_transaction(data, keccak256)


def refusal(data: bytes) -> str:
    with pytest.raises(Refused) as caught:
        parse_transaction(data)
    assert caught.value.rule.startswith("payload/")
    return caught.value.reason


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"nonce": 0, "value": 0, "maxPriorityFeePerGas": 0, "data": "0x"},
        {"data": "0xa9059cbb" + "00" * 64, "gas": 2**32, "chainId": 2**40},
        {"data": "0x" + "ff" * 300},
        {"to": b""},
        {"accessList": [{"address": "0x" + "11" * 20, "storageKeys": ["0x" + "22" * 32, "0x" + "33" * 32]}]},
    ],
)
def test_the_hash_is_the_one_eth_account_signs(extra: dict[str, Any]) -> None:
    account = Account.from_key(b"\x07" * 32)
    transaction = {
        "type": 2, "chainId": 1, "nonce": 7, "maxPriorityFeePerGas": 10**9, "maxFeePerGas": 3 * 10**10,
        "gas": 21_000, "to": to_checksum_address(TO), "value": 15 * 10**17, **extra,
    }  # fmt: skip
    signed = account.sign_transaction(transaction)
    fields = rlp.decode(bytes(signed.raw_transaction)[1:])
    unsigned = b"\x02" + bytes(rlp.encode(fields[:9]))

    h, decoded = parse_transaction(unsigned)

    assert h == bytes(DynamicFeeTransaction.from_dict(transaction).hash())
    signature = keys.Signature(vrs=(signed.v, signed.r, signed.s))
    assert signature.recover_public_key_from_msg_hash(h).to_checksum_address() == account.address
    assert (decoded.chain_id, decoded.nonce, decoded.value) == (
        transaction["chainId"], transaction["nonce"], transaction["value"],
    )  # fmt: skip


def test_what_is_decoded() -> None:
    address, slot = b"\x11" * 20, b"\x22" * 32
    _, decoded = parse_transaction(encoded_transaction({7: b"\xca\xfe", 8: [[address, [slot]]]}))
    assert decoded == EthereumDecoded(
        type=2, chain_id=1, nonce=7, max_priority_fee_per_gas=10**9, max_fee_per_gas=3 * 10**10, gas_limit=21_000,
        to=TO, value=15 * 10**17, data=b"\xca\xfe", access_list=(AccessEntry(address, (slot,)),),
    )  # fmt: skip
    assert decoded.max_fee == 21_000 * 3 * 10**10


def test_all_types_are_read_alike() -> None:
    """What a policy asks of a transaction (chain, destination, amount, data, cost) does not depend on its type."""
    access_list = (AccessEntry(b"\x11" * 20, (b"\x22" * 32,)),)
    common = {"chain_id": 1, "nonce": 7, "gas_limit": 21_000, "to": TO, "value": 15 * 10**17, "data": b"\xca\xfe"}
    _, legacy = parse_transaction(legacy_transaction({5: b"\xca\xfe"}))
    assert legacy == EthereumDecoded(type=0, gas_price=3 * 10**10, **common)  # type: ignore[arg-type]
    _, middle = parse_transaction(eip2930_transaction({6: b"\xca\xfe", 7: [[b"\x11" * 20, [b"\x22" * 32]]]}))
    assert middle == EthereumDecoded(type=1, gas_price=3 * 10**10, access_list=access_list, **common)  # type: ignore[arg-type]
    _, newest = parse_transaction(encoded_transaction({7: b"\xca\xfe"}))
    for name, value in common.items():
        assert [getattr(each, name) for each in (legacy, middle, newest)] == [value] * 3
    assert legacy.max_fee == middle.max_fee == newest.max_fee


@pytest.mark.parametrize(
    "extra", [{}, {"nonce": 0, "value": 0, "gasPrice": 0}, {"to": b""}, {"data": "0x" + "ff" * 300}]
)
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ({"chainId": 1}, LEGACY_FIELDS),
        ({"chainId": 2**60}, LEGACY_FIELDS),
        ({"type": 1, "chainId": 1}, EIP_2930_FIELDS),
        (
            {
                "type": 1,
                "chainId": 10,
                "accessList": [{"address": "0x" + "11" * 20, "storageKeys": ["0x" + "22" * 32]}],
            },
            EIP_2930_FIELDS,
        ),
    ],
)
def test_older_types_are_hashed_as_eth_account_does(
    kind: dict[str, Any], fields: list[Any], extra: dict[str, Any]
) -> None:
    account = Account.from_key(b"\x07" * 32)
    transaction = {
        "nonce": 7, "gasPrice": 3 * 10**10, "gas": 21_000, "to": to_checksum_address(TO), "value": 15 * 10**17,
        "data": b"", **kind, **extra,
    }  # fmt: skip
    signed = account.sign_transaction(transaction)
    raw = bytes(signed.raw_transaction)
    if "type" in kind:
        unsigned = raw[:1] + bytes(rlp.encode(rlp.decode(raw[1:])[: len(fields)]))
        recid = signed.v
    else:
        unsigned = bytes(rlp.encode([*rlp.decode(raw)[:6], kind["chainId"], b"", b""]))
        recid = signed.v - 35 - 2 * kind["chainId"]

    h, decoded = parse_transaction(unsigned)

    signature = keys.Signature(vrs=(recid, signed.r, signed.s))
    assert signature.recover_public_key_from_msg_hash(h).to_checksum_address() == account.address
    assert (decoded.chain_id, decoded.nonce, decoded.value, decoded.gas_price) == (
        transaction["chainId"], transaction["nonce"], transaction["value"], transaction["gasPrice"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (legacy_transaction({6: 0}), "chainId is zero: the transaction could be replayed on any chain"),
        (legacy_transaction({7: 1}), "a legacy transaction to be signed ends with chainId, 0, 0"),
        (legacy_transaction({8: b"\0"}), "a legacy transaction to be signed ends with chainId, 0, 0"),
        (legacy_transaction({7: []}), "a legacy transaction to be signed ends with chainId, 0, 0"),
        (legacy_transaction({3: TO[1:]}), "to is not 0 or 20 bytes"),
        (legacy_transaction({1: b"\0"}), "gasPrice is not a canonical integer of at most 32 bytes"),
        # Before EIP-155: good on every chain.
        (bytes(rlp.encode(LEGACY_FIELDS[:6])), "an unsigned legacy (EIP-155) transaction has 9 fields"),
        (b"\xc0", "an unsigned legacy (EIP-155) transaction has 9 fields"),
        (eip2930_transaction({0: 0}), "chainId is zero: the transaction could be replayed on any chain"),
        (eip2930_transaction({7: b""}), "accessList is not a list"),
        (b"\x01" + encoded_transaction()[1:], "an unsigned EIP-2930 transaction has 8 fields"),
        (b"\x02" + eip2930_transaction()[1:], "an unsigned EIP-1559 transaction has 9 fields"),
        # The fields of legacy under a type are another transaction, or none.
        (b"\x02" + legacy_transaction({1: 1, 2: 2}), "accessList is not a list"),
    ],
)
def test_wrong_fields_of_older_types(data: bytes, reason: str) -> None:
    assert refusal(data) == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({0: 0}, "chainId is zero: the transaction could be replayed on any chain"),
        ({0: b"\x00\x01"}, "chainId is not a canonical integer of at most 32 bytes"),
        ({1: b"\x00"}, "nonce is not a canonical integer of at most 8 bytes"),
        ({1: b"\x01" * 9}, "nonce is not a canonical integer of at most 8 bytes"),
        ({6: b"\x01" * 33}, "value is not a canonical integer of at most 32 bytes"),
        ({6: []}, "value is not a canonical integer of at most 32 bytes"),
        ({2: 4 * 10**10}, "maxPriorityFeePerGas is above maxFeePerGas"),
        ({5: TO[:-1]}, "to is not 0 or 20 bytes"),
        ({5: TO + b"\0"}, "to is not 0 or 20 bytes"),
        ({5: [TO]}, "to is not 0 or 20 bytes"),
        ({7: [b""]}, "data is not bytes"),
        ({8: b""}, "accessList is not a list"),
        ({8: [b""]}, "an accessList entry is not [address, [storageKey, ...]]"),
        ({8: [[b"\x11" * 20]]}, "an accessList entry is not [address, [storageKey, ...]]"),
        ({8: [[b"\x11" * 20, b""]]}, "an accessList entry is not [address, [storageKey, ...]]"),
        ({8: [[b"\x11" * 20, [], []]]}, "an accessList entry is not [address, [storageKey, ...]]"),
        ({8: [[b"\x11" * 19, []]]}, "accessList address is not 20 bytes"),
        ({8: [[b"\x11" * 20, [b"\x22" * 31]]]}, "accessList storage key is not 32 bytes"),
    ],
)
def test_wrong_fields(changes: dict[int, Any], reason: str) -> None:
    assert refusal(encoded_transaction(changes)) == reason


def test_wrong_shape() -> None:
    for data in (b"", b"\0" + legacy_transaction(), b"\x03" + encoded_transaction()[1:], b"\x80", b"\xbf"):
        assert refusal(data) == "only legacy (EIP-155), EIP-2930 and EIP-1559 transactions are understood"
    for fields in (FIELDS[:8], [*FIELDS, b""], [*FIELDS, 1, 2, 3], []):
        assert refusal(encoded_transaction(fields=fields)) == "an unsigned EIP-1559 transaction has 9 fields"
    assert refusal(b"\x02\x83abc") == "an unsigned EIP-1559 transaction has 9 fields"
    assert refusal(encoded_transaction() + b"\0") == "not canonical RLP: bytes after the end"
    for cut in range(2, len(encoded_transaction())):
        assert refusal(encoded_transaction()[:cut]).startswith("not canonical RLP: ")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an item is missing"),
        (b"\x81\x7f", "a single byte in the long form"),
        (b"\x82a", "an item is cut short"),
        (b"\xc2a", "an item is cut short"),
        (b"\xc1\x82", "an item is cut short"),
        (b"\xb8\x37" + b"a" * 55, "a short item in the long form"),
        (b"\xf8\x37" + b"a" * 55, "a short item in the long form"),
        (b"\xb9\x00\x40" + b"a" * 64, "a length that is cut short or has leading zeros"),
        (b"\xb8", "a length that is cut short or has leading zeros"),
        (b"\xbf" + b"\xff" * 8 + b"a", "an item is cut short"),
        (b"\xc4\xb8\x40aa", "an item is cut short"),
        (b"aa", "bytes after the end"),
        (b"\xc5\xc4\xc3\xc2\xc1\xc0", "too deep or too many items"),
        (b"\xf9\x10\x01" + b"\x01" * 4097, "too deep or too many items"),
        (b"\xba\x01\x00\x00" + b"a" * 65536, "65540 bytes exceed 49152"),
    ],
)
def test_rlp_has_one_encoding(data: bytes, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        strict_rlp.decode(data)
    assert (caught.value.rule, caught.value.reason.removeprefix("not canonical RLP: ")) == ("payload/rlp", reason)


def test_bodies() -> None:
    payload = decode_payload(EthereumTransaction("0x" + encoded_transaction().hex(), "e"))
    assert (payload.kind, payload.blind, payload.h) == (
        Kind.ETHEREUM_TRANSACTION, False, parse_transaction(encoded_transaction())[0],
    )  # fmt: skip
    blind = decode_payload(Hash("0x" + "ab" * 32, "e"))
    assert (blind.kind, blind.blind, blind.h, blind.decoded) == (Kind.HASH, True, b"\xab" * 32, None)
