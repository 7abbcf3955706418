"""BIP-143 preimages: the specification's example, and nothing that differs from the structure."""

from __future__ import annotations

import hashlib

import pytest

from enclave.errors import Refused
from enclave.payloads import decode_payload
from policies.decoded import BitcoinDecoded
from policies.model import Kind
from policies.payloads.bitcoin import parse_preimage
from policies.requests import BitcoinBip143Preimage
from tests.fakes.payloads import OUTPUTS, PREVOUTS, SCRIPT, SEQUENCES, SIGHASH, TXID, ZERO, preimage


def refusal(data: bytes) -> str:
    with pytest.raises(Refused) as caught:
        parse_preimage(data)
    assert caught.value.rule == "payload/bitcoin"
    return caught.value.reason.removeprefix("not a BIP-143 preimage: ")


def test_the_example_of_bip_143() -> None:
    h, decoded = parse_preimage(preimage())
    assert h == SIGHASH
    assert decoded == BitcoinDecoded(1, PREVOUTS, SEQUENCES, TXID, 1, SCRIPT, 600_000_000, 0xFFFFFFFF, OUTPUTS, 17, 1)
    payload = decode_payload(BitcoinBip143Preimage("0x" + preimage().hex(), "e"))
    assert (payload.kind, payload.h, payload.blind) == (Kind.BITCOIN_BIP143_PREIMAGE, SIGHASH, False)


@pytest.mark.parametrize(
    ("kind", "prevouts", "sequences", "outputs"),
    [
        (0x01, PREVOUTS, SEQUENCES, OUTPUTS),
        (0x02, PREVOUTS, ZERO, ZERO),
        (0x03, PREVOUTS, ZERO, OUTPUTS),
        (0x03, PREVOUTS, ZERO, ZERO),  # no output with the input's number
        (0x81, ZERO, ZERO, OUTPUTS),
        (0x82, ZERO, ZERO, ZERO),
        (0x83, ZERO, ZERO, OUTPUTS),
    ],
)
def test_all_known_sighash_types(kind: int, prevouts: bytes, sequences: bytes, outputs: bytes) -> None:
    data = preimage(kind=kind, prevouts=prevouts, sequences=sequences, outputs=outputs)
    h, decoded = parse_preimage(data)
    assert h == hashlib.sha256(hashlib.sha256(data).digest()).digest()
    assert decoded.sighash_type == kind


@pytest.mark.parametrize("kind", [0x00, 0x04, 0x41, 0x80, 0x84, 0x101, 0x80000001])
def test_unknown_sighash_types(kind: int) -> None:
    assert refusal(preimage(kind=kind)) == f"unknown sighash type {kind:#x}"


@pytest.mark.parametrize(
    ("kind", "prevouts", "sequences", "outputs", "wrong"),
    [
        (0x01, ZERO, SEQUENCES, OUTPUTS, "hashPrevouts"),
        (0x81, PREVOUTS, ZERO, OUTPUTS, "hashPrevouts"),
        (0x01, PREVOUTS, ZERO, OUTPUTS, "hashSequence"),
        (0x02, PREVOUTS, SEQUENCES, ZERO, "hashSequence"),
        (0x81, ZERO, SEQUENCES, OUTPUTS, "hashSequence"),
        (0x01, PREVOUTS, SEQUENCES, ZERO, "hashOutputs"),
        (0x02, PREVOUTS, ZERO, OUTPUTS, "hashOutputs"),
    ],
)
def test_hashes_that_do_not_fit_the_type(
    kind: int, prevouts: bytes, sequences: bytes, outputs: bytes, wrong: str
) -> None:
    data = preimage(kind=kind, prevouts=prevouts, sequences=sequences, outputs=outputs)
    assert refusal(data) == f"{wrong} does not fit the sighash type"


def test_lengths() -> None:
    whole = preimage()
    for cut in range(len(whole)):
        refusal(whole[:cut])
    refusal(whole + b"\0")
    refusal(b"")
    for script in (b"", b"\x18" + SCRIPT, b"\x1a" + SCRIPT):
        refusal(preimage(script))


@pytest.mark.parametrize(
    "prefix",
    [b"\xfd\x19\x00", b"\xfe\x19\x00\x00\x00", b"\xff\x19" + bytes(7)],
)
def test_a_compact_size_that_is_not_the_shortest(prefix: bytes) -> None:
    assert refusal(preimage(prefix + SCRIPT)) == "scriptCode has no canonical compactSize"


def test_long_scripts() -> None:
    for size in (0xFD, 10_000):
        script = b"\xfd" + size.to_bytes(2, "little") + b"\x51" * size
        assert parse_preimage(preimage(script))[1].script_code == b"\x51" * size
    refusal(preimage(b"\xfd" + (10_001).to_bytes(2, "little") + b"\x51" * 10_001))


def test_more_than_all_bitcoin() -> None:
    most = 21_000_000 * 100_000_000
    assert parse_preimage(preimage(amount=most))[1].amount == most
    assert refusal(preimage(amount=most + 1)) == "the amount is above 21 million bitcoin"
