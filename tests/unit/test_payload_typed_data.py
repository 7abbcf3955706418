"""EIP-712: the hash that eth-account computes, and a refusal of all that two readers could take differently."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data  # type: ignore[attr-defined]
from hypothesis import given, settings

from appliance.api.signatures import what_is_signed
from enclave.errors import Refused
from enclave.payloads import decode_payload
from policies.decoded import TypedDataDecoded, TypedField
from policies.gate_messages import show_decoded
from policies.model import Kind
from policies.requests import Eip712TypedData
from tests.fakes.typed_data import ETHER_MAIL, ETHER_MAIL_HASH, documents, ether_mail, parsed

COW = bytes.fromhex("cd2a3d9f938e13cd947ec05abc7fe734df8dd826")
BOB = b"\xbb" * 20


def body(document: dict[str, Any]) -> Eip712TypedData:
    return Eip712TypedData(parsed(document), "e")


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(Refused) as caught:
        decode_payload(body(document))
    assert caught.value.rule == "payload/eip712"
    return caught.value.reason


def one(kind: str, value: Any, **types: list[dict[str, str]]) -> dict[str, Any]:
    """A document with one member `x`."""
    domain = [{"name": "name", "type": "string"}]
    types = {"EIP712Domain": domain, "Root": [{"name": "x", "type": kind}], **types}
    return {"types": types, "primaryType": "Root", "domain": {"name": "d"}, "message": {"x": value}}


def test_example_of_the_eip() -> None:
    payload = decode_payload(body(ETHER_MAIL))
    assert (payload.h.hex(), payload.kind, payload.blind) == (ETHER_MAIL_HASH, Kind.EIP712_TYPED_DATA, False)
    person = "Person(string name,address wallet)"
    assert payload.decoded == TypedDataDecoded(
        primary_type="Mail",
        encode_type=f"Mail(Person from,Person to,string contents){person}",
        name="Ether Mail",
        version="1",
        chain_id=1,
        verifying_contract=b"\xcc" * 20,
        salt=None,
        message=(
            TypedField("from", "Person", (TypedField("name", "string", "Cow"), TypedField("wallet", "address", COW))),
            TypedField("to", "Person", (TypedField("name", "string", "Bob"), TypedField("wallet", "address", BOB))),
            TypedField("contents", "string", "Hello, Bob!"),
        ),
    )
    assert what_is_signed(body(ETHER_MAIL)) == payload.h


@settings(max_examples=300)
@given(documents())
def test_the_hash_is_the_one_eth_account_signs(document: dict[str, Any]) -> None:
    expected = bytes(_hash_eip191_message(encode_typed_data(full_message=document)))
    assert decode_payload(body(document)).h == expected


@pytest.mark.parametrize(
    "document",
    [
        # a struct that holds itself
        one("Node[]", [{"of": []}, {"of": [{"of": []}]}], Node=[{"name": "of", "type": "Node[]"}]),
        # two structs that hold each other
        one("A", {"b": [{"a": []}]}, A=[{"name": "b", "type": "B[]"}], B=[{"name": "a", "type": "A[]"}]),
        one("uint8[2][][1]", [[[1, 2], [3, 4], [5, 6]]]),
        one("bytes", "0x"),
        one("string[]", []),
    ],
)
def test_recursion_and_emptiness(document: dict[str, Any]) -> None:
    expected = bytes(_hash_eip191_message(encode_typed_data(full_message=document)))
    assert decode_payload(body(document)).h == expected


def test_what_the_gate_is_shown() -> None:
    document = one("P[]", [{"a": 5, "b": True, "c": "0xAB"}], P=[
        {"name": "a", "type": "int8"}, {"name": "b", "type": "bool"}, {"name": "c", "type": "bytes"},
    ])  # fmt: skip
    shown = show_decoded(decode_payload(body(document)).decoded)
    assert shown == {
        "primary_type": "Root", "encode_type": "Root(P[] x)P(int8 a,bool b,bytes c)", "name": "d", "version": None,
        "chain_id": None, "verifying_contract": None, "salt": None,
        "message": [{"name": "x", "type": "P[]", "value": [[
            {"name": "a", "type": "int8", "value": "5"}, {"name": "b", "type": "bool", "value": True},
            {"name": "c", "type": "bytes", "value": "0xab"},
        ]]}],
    }  # fmt: skip


NUMBER_REASON = "is not an integer: write it in decimal, or in hex with 0x"
UNDEFINED = "which is not defined"
DOMAIN = "EIP712Domain"
MEMBER = {"name": "a", "type": "bool"}
DOMAIN_REASON = "EIP712Domain must have some of EIP-712's five fields, with its types and in its order"
PERSON = ("types", "Person")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (ether_mail("message", "extra", value=1), "Mail has no member 'extra'"),
        (ether_mail("message", "from", value={"name": "Cow"}), "Mail.from.wallet is missing"),
        (ether_mail("message", "from", value=None), "Mail.from is not an object"),
        (ether_mail("message", "contents", value=None), "Mail.contents is not a string"),
        (ether_mail("message", value={}), "Mail.from is missing"),
        (ether_mail("domain", "salt", value="0x" + "00" * 32), "EIP712Domain has no member 'salt'"),
        (ether_mail("domain", value={}), "EIP712Domain.name is missing"),
        (ether_mail("domain", "chainId", value="one"), f"EIP712Domain.chainId {NUMBER_REASON}"),
        (ether_mail("types", "EIP712Domain", value=[]), "EIP712Domain has 0 members, not 1 to 64"),
        (ether_mail("types", "EIP712Domain", 0, "type", value="bytes"), DOMAIN_REASON),
        (ether_mail("types", "EIP712Domain", 0, "name", value="title"), DOMAIN_REASON),
        (ether_mail("types", "EIP712Domain", value=ETHER_MAIL["types"]["EIP712Domain"][::-1]), DOMAIN_REASON),
        (ether_mail("types", value={"Mail": ETHER_MAIL["types"]["Person"]}), DOMAIN_REASON),
        (ether_mail("primaryType", value="EIP712Domain"), "primaryType names none of the document's structs"),
        (ether_mail("primaryType", value="Letter"), "primaryType names none of the document's structs"),
        (ether_mail("primaryType", value="Person"), "nothing uses the type Mail"),
        (ether_mail("types", "Spare", value=[MEMBER]), "nothing uses the type Spare"),
        (ether_mail(*PERSON, 1, "name", value="name"), "two members of Person have the same name"),
        (ether_mail(*PERSON, 1, "name", value="a b"), "Person has a member 'a b', which is no name"),
        (ether_mail(*PERSON, 1, "name", value=""), "Person has a member '', which is no name"),
        (ether_mail(*PERSON, 1, "type", value="Wallet"), f"Person.wallet has the type Wallet, {UNDEFINED}"),
        (ether_mail(*PERSON, 1, "type", value=DOMAIN), f"Person.wallet has the type {DOMAIN}, {UNDEFINED}"),
        (ether_mail(*PERSON, 1, "type", value="bool x,b"), "Person.wallet has the type 'bool x,b', which is none"),
        (ether_mail(*PERSON, value=[]), "Person has 0 members, not 1 to 64"),
        (one("bool", True, **{"bad name": [MEMBER]}), "'bad name' can't be the name of a struct"),
    ],
)  # fmt: skip
def test_documents_that_make_no_sense(document: dict[str, Any], reason: str) -> None:
    assert refusal(document) == reason


@pytest.mark.parametrize("name", ["uint256", "uint", "bytes33", "int7", "bool", "fixed", "ufixed128x18", "function"])
def test_names_that_solidity_has_a_meaning_for(name: str) -> None:
    document = one(name, {"a": True}, **{name: [{"name": "a", "type": "bool"}]})
    assert refusal(document) == f"{name!r} can't be the name of a struct"


@pytest.mark.parametrize(
    "kind", ["uint", "int", "uint7", "uint264", "uint08", "int0", "bytes0", "bytes33", "fixed", "byte"]
)
def test_types_that_eip712_does_not_have(kind: str) -> None:
    assert refusal(one(kind, 1)) == f"Root.x has the type {kind}, which is not defined"


@pytest.mark.parametrize(
    "kind", ["uint8[0]", "uint8[01]", "uint8[-1]", "uint8[", "uint8]", "[]", "", "uint8[10000]", "uint8 "]
)
def test_types_that_are_none(kind: str) -> None:
    assert refusal(one(kind, [])) == f"Root.x has the type {kind!r}, which is none"


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("uint8", 256, "does not fit uint8"),
        ("uint8", -1, "does not fit uint8"),
        ("int8", 128, "does not fit int8"),
        ("int8", "-129", "does not fit int8"),
        ("uint256", str(2**256), "does not fit uint256"),
        ("uint256", 2**53, "is beyond 2^53, where parsers differ: write it as a string"),
        ("int256", -(2**53), "is beyond 2^53, where parsers differ: write it as a string"),
        ("uint256", 1.0, "is not an integer"),
        ("uint256", 1e3, "is not an integer"),
        ("uint256", True, "is not an integer"),
        ("uint256", None, "is not an integer"),
        ("uint256", "01", NUMBER_REASON),
        ("uint256", "-0", NUMBER_REASON),
        ("uint256", "1_000", NUMBER_REASON),
        ("uint256", "1\n", NUMBER_REASON),
        ("uint256", "٣", NUMBER_REASON),
        ("uint256", "", NUMBER_REASON),
        ("uint256", "0x", NUMBER_REASON),
        ("uint256", "0x" + "0" * 65, NUMBER_REASON),
        ("bool", 1, "is not true or false"),
        ("bool", "true", "is not true or false"),
        ("string", 5, "is not a string"),
        ("bytes4", "0xaabbcc", "is not 4 bytes in hex with 0x"),
        ("bytes4", "0xaabbccddee", "is not 4 bytes in hex with 0x"),
        ("bytes4", "aabbccdd", "is not 4 bytes in hex with 0x"),
        ("bytes", "0xabc", "is not any number of bytes in hex with 0x"),
        ("bytes", "text", "is not any number of bytes in hex with 0x"),
        ("address", "0x" + "ab" * 19, "is not 20 bytes in hex with 0x"),
        ("address", "vitalik.eth", "is not 20 bytes in hex with 0x"),
        ("uint8[2]", [1], "has 1 items, not 2"),
        ("uint8[2]", [1, 2, 3], "has 3 items, not 2"),
        ("uint8[]", 1, "is not an array"),
        ("uint8[]", {"0": 1}, "is not an array"),
    ],
)  # fmt: skip
def test_values_of_another_type(kind: str, value: Any, reason: str) -> None:
    assert refusal(one(kind, value)) == f"Root.x {reason}"


def test_where_a_wrong_value_is() -> None:
    document = one("P[][]", [[], [{"a": 1}, {"a": "x"}]], P=[{"name": "a", "type": "uint8"}])
    assert refusal(document).startswith("Root.x[1][1].a is not an integer")


def test_bounds() -> None:
    assert refusal(one("uint8[][][][][]", [])) == "Root.x: more than 4 dimensions or 4096 items"
    assert refusal(one("uint8[5000]", [])) == "Root.x: more than 4 dimensions or 4096 items"
    assert refusal(one("bool[]", [True] * 4096)) == "deeper than 10 or more than 4096 values"
    assert len(decode_payload(body(one("bool[]", [True] * 4094))).h) == 32
    nested: dict[str, Any] = {"of": []}
    for _ in range(5):
        nested = {"of": [nested]}
    assert refusal(one("Node", nested, Node=[{"name": "of", "type": "Node[]"}])).startswith("deeper than 10")
    many = [{"name": f"m{i}", "type": "bool"} for i in range(65)]
    assert refusal(one("P", {}, P=many)) == "P has 65 members, not 1 to 64"
    with pytest.raises(msgspec.ValidationError):
        parsed(one("bool", True, **{f"S{i}": many[:1] for i in range(63)}))
    with pytest.raises(msgspec.ValidationError):
        parsed(ether_mail("extra", value=1))


def test_half_a_character() -> None:
    document = parsed(ETHER_MAIL)
    broken = msgspec.structs.replace(document, message={**document.message, "contents": "\ud800"})
    with pytest.raises(Refused, match="half a character"):
        decode_payload(Eip712TypedData(broken, "e"))
