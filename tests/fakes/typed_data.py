"""Documents of EIP-712: the example of the EIP, and generated ones that make sense."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
from hypothesis import strategies as st

from policies.requests import TypedData

ETHER_MAIL: dict[str, Any] = {
    "types": {
        "EIP712Domain": [
            {"name": "name", "type": "string"},
            {"name": "version", "type": "string"},
            {"name": "chainId", "type": "uint256"},
            {"name": "verifyingContract", "type": "address"},
        ],
        "Person": [{"name": "name", "type": "string"}, {"name": "wallet", "type": "address"}],
        "Mail": [
            {"name": "from", "type": "Person"},
            {"name": "to", "type": "Person"},
            {"name": "contents", "type": "string"},
        ],
    },
    "primaryType": "Mail",
    "domain": {
        "name": "Ether Mail",
        "version": "1",
        "chainId": 1,
        "verifyingContract": "0xCcCCccccCCCCcCCCCCCcCcCccCcCCCcCcccccccC",
    },
    "message": {
        "from": {"name": "Cow", "wallet": "0xCD2a3d9F938E13CD947Ec05AbC7FE734Df8DD826"},
        "to": {"name": "Bob", "wallet": "0xbBbBBBBbbBBBbbbBbbBbbbbBBbBbbbbBbBbbBBbB"},
        "contents": "Hello, Bob!",
    },
}
# Source: EIP-712, "Example".
ETHER_MAIL_HASH = "be609aee343fb3c4b28e1df9e632fca64fcfaede20f02e86244efddf30957bd2"


def ether_mail(*path: str | int, value: Any = None) -> dict[str, Any]:
    """The example with the value at `path` replaced."""
    document = copy.deepcopy(ETHER_MAIL)
    if path:
        at: Any = document
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
    return document


def parsed(document: dict[str, Any]) -> TypedData:
    return msgspec.json.decode(msgspec.json.encode(document), type=TypedData)


HEX = {size: st.binary(min_size=size, max_size=size).map(lambda data: "0x" + data.hex()) for size in range(1, 33)}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
DOMAIN_VALUES = {
    "name": ("string", TEXT),
    "version": ("string", TEXT),
    "chainId": ("uint256", st.integers(0, 2**53 - 1)),
    "verifyingContract": ("address", HEX[20]),
    "salt": ("bytes32", HEX[32]),
}


def _integers(kind: str, bits: int) -> st.SearchStrategy[Any]:
    least, most = (0, 2**bits - 1) if kind == "uint" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    number = st.integers(least, most) | st.sampled_from([least, most, 0])

    def write(value: int, form: str) -> int | str:
        if form == "hex" and value >= 0:
            return hex(value)
        return value if form == "number" and abs(value) < 2**53 else str(value)

    return st.builds(write, number, st.sampled_from(["number", "decimal", "hex"]))


@st.composite
def atoms(draw: st.DrawFn) -> tuple[str, st.SearchStrategy[Any]]:
    """A type that is no struct, and its values."""
    kind = draw(st.sampled_from(["uint", "int", "bytesN", "bytes", "bool", "address", "string"]))
    if kind in ("uint", "int"):
        bits = 8 * draw(st.integers(1, 32))
        return f"{kind}{bits}", _integers(kind, bits)
    if kind == "bytesN":
        size = draw(st.integers(1, 32))
        return f"bytes{size}", HEX[size]
    values = {"bytes": st.binary(max_size=70).map(lambda data: "0x" + data.hex()), "bool": st.booleans()}
    return kind, (values | {"address": HEX[20], "string": TEXT})[kind]


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Documents that make sense: nested structs, arrays of several dimensions, any subset of the domain's fields."""
    names = draw(st.lists(st.sampled_from(list(DOMAIN_VALUES)), min_size=1, unique=True))
    present = [name for name in DOMAIN_VALUES if name in names]
    types: dict[str, Any] = {"EIP712Domain": [{"name": name, "type": DOMAIN_VALUES[name][0]} for name in present]}
    message = _struct(draw, types, "Root", 0)
    domain = {name: draw(DOMAIN_VALUES[name][1]) for name in present}
    return {"types": types, "primaryType": "Root", "domain": domain, "message": draw(message)}


def _struct(draw: st.DrawFn, types: dict[str, Any], name: str, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Add a struct `name` to `types`; its values."""
    members: list[dict[str, str]] = []
    types[name] = members
    values: dict[str, st.SearchStrategy[Any]] = {}
    for number in range(draw(st.integers(1, 4))):
        if depth < 2 and draw(st.integers(0, 3)) == 0:
            # Names in no order, since `encodeType` sorts them.
            kind = f"{draw(st.sampled_from('ZbA_$'))}{len(types)}"
            value: st.SearchStrategy[Any] = _struct(draw, types, kind, depth + 1)
        else:
            kind, value = draw(atoms())
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
            length = draw(st.none() | st.integers(1, 3))
            kind += "[]" if length is None else f"[{length}]"
            value = st.lists(value, min_size=length or 0, max_size=length or 3)
        members.append({"name": f"m{number}", "type": kind})
        values[f"m{number}"] = value
    return st.fixed_dictionaries(values)
