"""Any bytes: a payload or `Refused`, and nothing else; what is accepted has exactly one encoding."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import rlp as oracle
from eth_account.messages import _hash_eip191_message, encode_typed_data  # type: ignore[attr-defined]
from hypothesis import given
from hypothesis import strategies as st

from enclave.errors import Refused
from enclave.payloads import Payload, decode_payload
from enclave.requests import VerifiedRequest, parse_hash_batch
from policies.decoded import BitcoinDecoded, EthereumDecoded, MessageDecoded
from policies.model import Kind
from policies.payloads import rlp
from policies.requests import (
    BitcoinBip143Preimage,
    Eip712TypedData,
    EthereumTransaction,
    Message,
    MessageHash,
    SigningBody,
    TypedData,
)
from tests.fakes.payloads import eip2930_transaction, encoded_transaction, legacy_transaction, preimage
from tests.fakes.typed_data import ether_mail

ITEMS = st.recursive(st.binary(max_size=70), lambda inner: st.lists(inner, max_size=9), max_leaves=14)
# Single mutations of good input reach deeper than noise does.
EDITS = st.tuples(st.integers(0, 400), st.sampled_from(["flip", "drop", "double", "cut"]), st.integers(1, 255))


def edit(data: bytes, edits: list[tuple[int, str, int]]) -> bytes:
    for place, what, mask in edits:
        at = place % max(1, len(data))
        head, byte, tail = data[:at], data[at : at + 1], data[at + 1 :]
        flipped = bytes([byte[0] ^ mask]) if byte else b""
        data = {"flip": head + flipped + tail, "drop": head + tail, "double": head + byte * 2 + tail, "cut": head}[what]
    return data


def decoded(body: SigningBody) -> Payload | None:
    """The payload, None where it was refused. Any other exception is the finding."""
    try:
        return decode_payload(body)
    except Refused:
        return None


TRANSACTIONS = st.sampled_from([encoded_transaction(), eip2930_transaction(), legacy_transaction()])
EDITED = st.tuples(TRANSACTIONS, st.lists(EDITS, max_size=3)).map(lambda both: edit(*both))


@given(st.binary(max_size=300) | EDITED)
def test_ethereum(data: bytes) -> None:
    payload = decoded(EthereumTransaction("0x" + data.hex(), "e"))
    if payload is None:
        return
    assert len(payload.h) == 32
    assert isinstance(payload.decoded, EthereumDecoded)
    prefix = bytes([payload.decoded.type]) if payload.decoded.type else b""
    assert prefix + oracle.encode(oracle.decode(data[len(prefix) :])) == data


@given(st.binary(max_size=300) | EDITED | st.just(preimage()), st.sampled_from(MessageHash))
def test_a_message_is_never_another_kinds_payload(data: bytes, name: MessageHash) -> None:
    """Where the hashes are equal, a client that may sign messages could get the other kind signed."""
    payload = decoded(Message("0x" + data.hex(), name, "e"))
    others = [EthereumTransaction("0x" + data.hex(), "e"), BitcoinBip143Preimage("0x" + data.hex(), "e")]
    for other in filter(None, map(decoded, others)):
        assert payload is None or payload.h != other.h
    if payload is not None:
        assert (payload.kind, payload.blind, payload.decoded) == (
            Kind.MESSAGE, False, MessageDecoded(data, name.value),
        )  # fmt: skip


@given(st.binary(max_size=300) | st.lists(EDITS, max_size=3).map(lambda edits: edit(preimage(), edits)))
def test_bitcoin(data: bytes) -> None:
    payload = decoded(BitcoinBip143Preimage("0x" + data.hex(), "e"))
    if payload is None:
        return
    assert payload.h == hashlib.sha256(hashlib.sha256(data).digest()).digest()
    assert isinstance(payload.decoded, BitcoinDecoded)
    assert payload.decoded.script_code in data


def depth(item: Any) -> int:
    return 0 if isinstance(item, bytes) else 1 + max(map(depth, item), default=0)


@given(ITEMS)
def test_rlp_reads_what_another_library_writes(item: Any) -> None:
    data = bytes(oracle.encode(item))
    if depth(item) > rlp.MAX_DEPTH + 1:
        return
    try:
        assert rlp.decode(data) == item
    except Refused:
        assert depth(item) == rlp.MAX_DEPTH + 1


@given(st.binary(max_size=80))
def test_rlp_accepts_only_the_encoding_that_another_library_writes(data: bytes) -> None:
    try:
        item = rlp.decode(data)
    except Refused:
        return
    assert oracle.encode(item) == data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("0x" + "ab" * 20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "from", "wallet", ""]), inner),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [
        ("message", "from"),
        ("message", "from", "name"),
        ("message", "contents"),
        ("message",),
        ("domain",),
        ("domain", "chainId"),
        ("message", "to", "wallet"),
    ]
)
TYPES = st.sampled_from(["uint8", "Person", "Mail", "Person[]", "Mail[2]", "bytes", "bytes5", "bool[0]"])


@given(
    PATHS,
    JSON,
    st.lists(st.tuples(st.sampled_from(["Person", "Mail"]), st.integers(0, 1), TYPES | st.text()), max_size=2),
)
def test_typed_data(path: tuple[str, ...], value: Any, types: list[tuple[str, int, str]]) -> None:
    document = ether_mail(*path, value=value)
    for struct, member, kind in types:
        document["types"][struct][member]["type"] = kind[:100]
    try:
        body = Eip712TypedData(msgspec.convert(document, TypedData), "e")
    except msgspec.ValidationError:
        return
    payload = decoded(body)
    if payload is not None:
        assert payload.h == bytes(_hash_eip191_message(encode_typed_data(full_message=document)))


HASHES = st.lists(st.binary(min_size=32, max_size=32).map(lambda h: "0x" + h.hex()), min_size=1, max_size=4)
BATCH_PATHS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=3), min_size=1, max_size=4)


@given(HASHES, BATCH_PATHS, st.lists(EDITS, max_size=3))
def test_a_batch_names_each_hash_with_its_path_or_is_refused(
    hashes: list[str], paths: list[list[int]], edits: list[tuple[int, str, int]]
) -> None:
    fields = {"kind": "HashBatch", "hashes": hashes, "derivationPaths": paths, "externalId": "e"}
    body = edit(msgspec.json.encode(fields), edits)
    try:
        batch = parse_hash_batch(VerifiedRequest("client", "jti", 0, body))
    except Refused:
        assert edits or len(paths) not in (1, len(hashes))
        return
    assert len(batch.paths()) == len(batch.hashes)
    if not edits:
        assert list(batch.hashes) == hashes
        assert [list(path) for path in batch.paths()] == (paths if len(paths) > 1 else paths * len(hashes))
