"""Every field of a message type, found by inspection, and every way a test alters one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "flip": lambda value: value[:-1] + bytes([value[-1] ^ 1]),
    "zeros": lambda value: bytes(len(value)),
    "ones": lambda value: b"\xff" * len(value),
    "short": lambda value: value[:-1],
    "long": lambda value: value + b"\0",
}
TUPLE: dict[str, Callable[[Any], Any]] = {
    "drop": lambda value: value[:-1],
    "extra": lambda value: (*value, value[-1]),
    "empty": lambda value: (),
}
OTHER: dict[str, Callable[[Any], Any]] = {"other": lambda value: value + 1 if isinstance(value, int) else value + "x"}
OPTIONAL: dict[str, Callable[[Any], Any]] = {"given": lambda value: bytes(range(16)) if value is None else None}

Path = tuple[str, ...]


def fields_of(kind: type[msgspec.Struct]) -> Iterator[tuple[Path, dict[str, Callable[[Any], Any]]]]:
    """Path and mutations of every field of a message type, nested ones and elements of tuples (`[]`) included."""
    for field in msgspec.structs.fields(kind):
        yield from _walk((field.name,), inspect.type_info(field.type))


def _walk(path: Path, info: inspect.Type) -> Iterator[tuple[Path, dict[str, Callable[[Any], Any]]]]:
    if isinstance(info, inspect.Metadata):
        info = info.type
    match info:
        case inspect.BytesType():
            yield path, BYTES
        case inspect.VarTupleType():
            yield path, TUPLE
            yield from _walk((*path, "[]"), info.item_type)
        case inspect.StructType():
            for field in info.fields:
                yield from _walk((*path, field.name), field.type)
        case inspect.IntType() | inspect.StrType() | inspect.LiteralType():
            yield path, OTHER
        case inspect.UnionType() if info.includes_none:
            yield path, OPTIONAL
        case _:
            raise AssertionError(f"no mutations for {info} at {path}")


def altered(value: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """`value` with what is at `path` changed; `[]` is the first element."""
    if not path:
        return change(value)
    step, rest = path[0], path[1:]
    if step == "[]":
        return (altered(value[0], rest, change), *value[1:])
    return msgspec.structs.replace(value, **{step: altered(getattr(value, step), rest, change)})
