"""JSON without duplicate keys: what two parsers could read differently is refused before it is read."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec

MAX_DEPTH = 16

# The closing quote may be missing: searched for from every quote of a text without one, it would cost a square.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


T = TypeVar("T")


class JsonInvalid(ValueError):
    """Not JSON, a duplicate key, a number JSON does not have, or too deep."""


def parse_json(data: bytes) -> Any:
    """The value of strict UTF-8 JSON. Raises `JsonInvalid`, and nothing else, on any input."""
    _check_depth(data)
    try:
        return _strict.decode(data.decode("utf-8", "strict"))
    except JsonInvalid:
        raise
    except (ValueError, RecursionError) as error:
        raise JsonInvalid(f"not JSON: {str(error)[:100]}") from None


def decode_as(data: bytes, kind: type[T]) -> T:
    """`data` as one of our types; duplicate keys pass. Raises `msgspec.DecodeError`.

    Decoders are made once: for a union that takes longer than to decode a request.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    return decoder.decode(data)  # type: ignore[no-any-return]


def parse_as(data: bytes, kind: type[T]) -> T:
    """`data`, strict JSON, as one of our types. Raises `JsonInvalid` or `msgspec.DecodeError`."""
    _check_depth(data)
    try:
        value = decode_as(data, kind)
    except UnicodeDecodeError:
        raise JsonInvalid("not UTF-8") from None
    # What an encoder writes is read by all alike, and names nothing twice. Most is; to look costs a tenth of a parse.
    if _encode(value) != data:
        parse_json(data)
    return value


def _check_depth(data: bytes) -> None:
    """Counted, not left to the parsers: where a library has raised the recursion limit they overflow the C stack."""
    if data.count(b"{") + data.count(b"[") <= MAX_DEPTH:
        return  # however they nest
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise JsonInvalid(f"nested deeper than {MAX_DEPTH}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise JsonInvalid("a duplicate key")
    return found


def _no_constant(name: str) -> NoReturn:
    raise JsonInvalid(f"{name} is not JSON")


_encode = msgspec.json.Encoder().encode
_decoders: dict[object, msgspec.json.Decoder[Any]] = {}
_strict = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
