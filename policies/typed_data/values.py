"""The values of a typed document: each checked against its type, encoded to 32 bytes, and kept for who decides."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from policies.decoded import TypedField
from policies.typed_data.types import Atom, MemberType, TypedDataInvalid, TypeTable

MAX_DEPTH = 10
MAX_VALUES = 4096
LARGEST_JSON_INTEGER = 2**53 - 1
WORD_BYTES = 32

_DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,77}")
_HEX_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,64}")
_HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*")


class Encoder:
    """Encodes the structs of one document. Bounded in depth and in the number of values."""

    def __init__(self, table: TypeTable, keccak256: Callable[[bytes], bytes]) -> None:
        self._table, self._keccak = table, keccak256
        self._type_hashes: dict[str, bytes] = {}
        self._values = 0

    def hash_struct(self, struct: str, value: object, where: str = "", depth: int = 0) -> tuple[bytes, Any]:
        """EIP-712's `hashStruct` (32 bytes), and the members' `TypedField`s. Raises `TypedDataInvalid`."""
        where = where or struct
        members = self._table.members(struct)
        if not isinstance(value, dict):
            raise TypedDataInvalid(f"{where} is not an object")
        for name, _, _ in members:
            if name not in value:
                raise TypedDataInvalid(f"{where}.{name} is missing")
        if len(value) != len(members):
            unknown = min(value.keys() - {name for name, _, _ in members})
            raise TypedDataInvalid(f"{where} has no member {unknown[:70]!r}")
        words, fields = [self._type_hash(struct)], []
        for name, written, kind in members:
            word, decoded = self._encode(kind, kind.dimensions, value[name], f"{where}.{name}", depth + 1)
            words.append(word)
            fields.append(TypedField(name, written, decoded))
        return self._keccak(b"".join(words)), tuple(fields)

    def _type_hash(self, struct: str) -> bytes:
        if struct not in self._type_hashes:
            self._type_hashes[struct] = self._keccak(self._table.encode_type(struct).encode())
        return self._type_hashes[struct]

    def _encode(
        self, kind: MemberType, dimensions: tuple[int | None, ...], value: object, where: str, depth: int
    ) -> tuple[bytes, Any]:
        self._values += 1
        if depth > MAX_DEPTH or self._values > MAX_VALUES:
            raise TypedDataInvalid(f"deeper than {MAX_DEPTH} or more than {MAX_VALUES} values")
        if dimensions:
            return self._encode_array(kind, dimensions, value, where, depth)
        if kind.atom is None:
            return self.hash_struct(kind.base, value, where, depth)
        return self._encode_atom(kind.atom, value, where)

    def _encode_array(
        self, kind: MemberType, dimensions: tuple[int | None, ...], value: object, where: str, depth: int
    ) -> tuple[bytes, Any]:
        *inner, length = dimensions
        if not isinstance(value, list):
            raise TypedDataInvalid(f"{where} is not an array")
        if length is not None and len(value) != length:
            raise TypedDataInvalid(f"{where} has {len(value)} items, not {length}")
        items = [
            self._encode(kind, tuple(inner), item, f"{where}[{number}]", depth + 1) for number, item in enumerate(value)
        ]
        return self._keccak(b"".join(word for word, _ in items)), tuple(decoded for _, decoded in items)

    def _encode_atom(self, atom: Atom, value: object, where: str) -> tuple[bytes, Any]:
        match atom.kind:
            case "bool":
                if not isinstance(value, bool):
                    raise TypedDataInvalid(f"{where} is not true or false")
                return int(value).to_bytes(WORD_BYTES, "big"), value
            case "uint" | "int":
                number = _integer(atom, value, where)
                return (number % 2**256).to_bytes(WORD_BYTES, "big"), number
            case "string":
                text = _text(value, where)
                return self._keccak(text), value
            case "address":
                data = _bytes(value, where, 20)
                return data.rjust(WORD_BYTES, b"\0"), data
            case _:
                data = _bytes(value, where, atom.size)
                return (data.ljust(WORD_BYTES, b"\0") if atom.size else self._keccak(data)), data


def _integer(atom: Atom, value: object, where: str) -> int:
    """A JSON integer that every parser reads exactly, or a string: decimal, or hex with 0x."""
    if isinstance(value, str):
        if not (_DECIMAL.fullmatch(value) or _HEX_NUMBER.fullmatch(value)):
            raise TypedDataInvalid(f"{where} is not an integer: write it in decimal, or in hex with 0x")
        number = int(value, 16) if value.startswith("0x") else int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > LARGEST_JSON_INTEGER:
            raise TypedDataInvalid(f"{where} is beyond 2^53, where parsers differ: write it as a string")
        number = value
    else:
        raise TypedDataInvalid(f"{where} is not an integer")
    least, most = (0, 2**atom.size - 1) if atom.kind == "uint" else (-(2 ** (atom.size - 1)), 2 ** (atom.size - 1) - 1)
    if not least <= number <= most:
        raise TypedDataInvalid(f"{where} does not fit {atom.kind}{atom.size}")
    return number


def _text(value: object, where: str) -> bytes:
    if not isinstance(value, str):
        raise TypedDataInvalid(f"{where} is not a string")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise TypedDataInvalid(f"{where} holds half a character") from None


def _bytes(value: object, where: str, size: int) -> bytes:
    """`size` bytes of hex with 0x; any number of them where `size` is 0."""
    if not isinstance(value, str) or not _HEX.fullmatch(value) or (size and len(value) != 2 + 2 * size):
        raise TypedDataInvalid(f"{where} is not {size or 'any number of'} bytes in hex with 0x")
    return bytes.fromhex(value[2:])
