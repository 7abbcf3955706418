"""Messages: the hash that other libraries compute, and no way around the other kinds."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
import rlp
from eth_account.messages import _hash_eip191_message, encode_defunct  # type: ignore[attr-defined]
from eth_utils import keccak  # type: ignore[attr-defined]

from appliance.api.signatures import what_is_signed
from enclave.errors import Refused
from enclave.payloads import decode_payload
from policies.decoded import MessageDecoded
from policies.model import Kind
from policies.requests import MAX_MESSAGE_BYTES, Message, MessageHash
from tests.fakes.payloads import TO, eip2930_transaction, encoded_transaction, legacy_transaction, preimage

HELLO = b"hello"
MESSAGES = [b"", HELLO, b"\x00" * 40, "Grüße ☃".encode(), b"a" * 1000, bytes(range(256))]


def body(message: bytes, name: MessageHash) -> Message:
    return Message("0x" + message.hex(), name, "e")


def refusal(message: bytes, name: MessageHash) -> str:
    with pytest.raises(Refused) as caught:
        decode_payload(body(message, name))
    assert caught.value.rule == "payload/message"
    return caught.value.reason


@pytest.mark.parametrize("message", MESSAGES)
def test_hashes(message: bytes) -> None:
    expected = {
        MessageHash.SHA_256: hashlib.sha256(message).digest(),
        MessageHash.SHA_256D: hashlib.sha256(hashlib.sha256(message).digest()).digest(),
        MessageHash.KECCAK_256: bytes(keccak(message)),
        MessageHash.EIP_191: bytes(_hash_eip191_message(encode_defunct(primitive=message))),
    }
    assert set(expected) == set(MessageHash)
    for name, h in expected.items():
        payload = decode_payload(body(message, name))
        assert (payload.h, payload.kind, payload.blind) == (h, Kind.MESSAGE, False)
        assert payload.decoded == MessageDecoded(message, name.value)
        assert what_is_signed(body(message, name)) == h


def test_known_answer() -> None:
    """Source: Ethereum's documentation of `personal_sign` for "hello"."""
    known = "50b2c43fd39106bafbba0da34fc430e1f91e3c96ea2acee2bc34119f92b37750"
    assert decode_payload(body(HELLO, MessageHash.EIP_191)).h.hex() == known


@pytest.mark.parametrize(
    "message",
    [
        encoded_transaction(),
        eip2930_transaction(),
        legacy_transaction(),
        # forms that the kind EthereumTransaction refuses: before EIP-155, blobs, set code, an EIP-7702 authorization
        bytes(rlp.encode([7, 1, 21_000, TO, 1, b""])),
        b"\x03" + bytes(rlp.encode([1] * 11)),
        b"\x04" + bytes(rlp.encode([1] * 10)),
        b"\x05" + bytes(rlp.encode([1, TO, 0])),
        # not canonical, for a node that is lax
        b"\x02\xf8\x01a",
        b"\xf9\x00\x02aa",
    ],
)
def test_keccak_of_a_transaction(message: bytes) -> None:
    reason = "under Keccak-256 this message would be an Ethereum transaction: ask with that kind"
    assert refusal(message, MessageHash.KECCAK_256) == reason
    # One byte more, and it is none; under another hash it never was.
    assert decode_payload(body(message + b"\0", MessageHash.KECCAK_256)).h == keccak(message + b"\0")
    assert decode_payload(body(message, MessageHash.EIP_191)).kind is Kind.MESSAGE


@pytest.mark.parametrize("second", [b"\x00", b"\x01", b"\x45"])
def test_keccak_of_what_eip191_prefixes(second: bytes) -> None:
    assert "typed data" in refusal(b"\x19" + second + b"\xaa" * 64, MessageHash.KECCAK_256)


def test_double_hash_of_a_bitcoin_input() -> None:
    legacy = bytes.fromhex("01000000") + b"\x01" + b"\xaa" * 36 + b"\0" + b"\xff" * 4 + b"\0" + bytes(4)
    for message in (preimage(), legacy + (2).to_bytes(4, "little")):
        assert "a Bitcoin input" in refusal(message, MessageHash.SHA_256D)
    assert decode_payload(body(preimage() + b"\1", MessageHash.SHA_256D)).kind is Kind.MESSAGE
    assert decode_payload(body(bytes(54), MessageHash.SHA_256D)).kind is Kind.MESSAGE


def test_a_hash_under_sha256() -> None:
    inner = hashlib.sha256(preimage()).digest()
    assert "blind" in refusal(inner, MessageHash.SHA_256)
    assert decode_payload(body(inner + b"\0", MessageHash.SHA_256)).kind is Kind.MESSAGE


def test_bounds() -> None:
    largest = msgspec.json.encode(body(b"a" * MAX_MESSAGE_BYTES, MessageHash.EIP_191))
    assert msgspec.json.decode(largest, type=Message).message == "0x" + "61" * MAX_MESSAGE_BYTES
    for wrong in (
        largest.replace(b'"0x', b'"0x61'),
        largest.replace(b"EIP-191", b"MD5"),
        largest.replace(b'"0x', b'"'),
        largest.replace(b'"0x61', b'"0x6G'),
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(wrong, type=Message)
