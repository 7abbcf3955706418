"""EIP-1559 payloads: the hash that eth-account signs, and one accepted encoding for each transaction."""

from __future__ import annotations

from typing import Any

import pytest
import rlp
from eth_account import Account
from eth_account.typed_transactions import DynamicFeeTransaction  # type: ignore[attr-defined]
from eth_keys import keys  # type: ignore[attr-defined]
from eth_utils import to_checksum_address  # type: ignore[attr-defined]

from enclave.errors import Refused
from enclave.payloads import decode_payload
from enclave.payloads import rlp as strict_rlp
from enclave.payloads.ethereum import parse_transaction
from policies.model import AccessEntry, EthereumDecoded, Kind
from policies.requests import EthereumTransaction, Hash
from tests.fakes.payloads import FIELDS, TO, encoded_transaction


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
        1, 7, 10**9, 3 * 10**10, 21_000, TO, 15 * 10**17, b"\xca\xfe", (AccessEntry(address, (slot,)),)
    )


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
    for data in (
        b"",
        b"\x01" + encoded_transaction()[1:],
        b"\x03" + encoded_transaction()[1:],
        encoded_transaction()[1:],
    ):
        assert refusal(data) == "only EIP-1559 transactions (type 2) are understood"
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
