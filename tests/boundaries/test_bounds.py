"""Every text, byte string and container in every message has a largest size: what decodes is bounded field by field."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import inspect

import appliance.relay
import enclave
from enclave.effects import Effects
from enclave.wire import MAX_AUDIT_ENTRIES, MAX_MESSAGE_BYTES, Attached, Audit, AuditEntry, Wire, frame

# A pattern bounds a text when nothing in it repeats without end.
ENDLESS = re.compile(r"[*+]|\{\d*,\}")
LENGTHS = (inspect.StrType, inspect.BytesType, inspect.CollectionType, inspect.DictType)


def messages(kind: type[Any] = Wire) -> Iterator[type[Any]]:
    """All message types there are: of the socket, the relay, the channels, the protocols and the sealed records."""
    for child in kind.__subclasses__():
        # The worker is the enclave's own child: nobody else speaks to it.
        if not child.__module__.startswith(("tests.", "enclave.worker")):
            yield child
        yield from messages(child)


def unbounded(kind: inspect.Type, path: str) -> Iterator[str]:
    """Where in `kind` something has no largest size. Other messages in it are looked at by themselves."""
    if isinstance(kind, LENGTHS) and kind.max_length is None:
        pattern = kind.pattern if isinstance(kind, inspect.StrType) else None
        if pattern is None or ENDLESS.search(pattern):
            yield path
    if isinstance(kind, inspect.Metadata):
        yield from unbounded(kind.type, path)
    elif isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from unbounded(one, path)
    elif isinstance(kind, inspect.TupleType):
        for one in kind.item_types:
            yield from unbounded(one, path + ".[]")
    elif isinstance(kind, inspect.CollectionType):
        yield from unbounded(kind.item_type, path + ".[]")
    elif isinstance(kind, inspect.DictType):
        yield from unbounded(kind.key_type, path + ".key")
        yield from unbounded(kind.value_type, path + ".value")
    elif isinstance(kind, inspect.AnyType | inspect.RawType | inspect.CustomType):
        yield path


def test_no_message_has_a_field_without_a_largest_size() -> None:
    for module in pkgutil.walk_packages(enclave.__path__, "enclave."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = set(messages())
    assert {enclave.wire.Order, enclave.wire.EvidencePart, appliance.relay.Several} <= found
    assert len(found) > 90
    loose = []
    for message in found:
        info = inspect.type_info(message)
        assert isinstance(info, inspect.StructType)
        for field in info.fields:
            loose += unbounded(field.type, f"{message.__name__}.{field.name}")
    assert not loose, sorted(loose)


@pytest.mark.parametrize(
    "kind",
    [
        str,
        bytes,
        tuple[int, ...],
        dict[str, int],
        Annotated[dict[str, int], msgspec.Meta(max_length=1)],
        Annotated[tuple[bytes, ...], msgspec.Meta(max_length=1)],
        Annotated[str, msgspec.Meta(pattern="^a+$")],
        tuple[int, str],
        str | None,
    ],
)
def test_what_is_unbounded_is_found(kind: Any) -> None:
    assert list(unbounded(inspect.type_info(kind), "here"))


def test_audit_entries_of_any_size_fit_into_messages() -> None:
    entry = AuditEntry(2**53, bytes(8192), bytes(32), bytes(64))
    assert len(frame(Audit((entry,) * MAX_AUDIT_ENTRIES))) <= MAX_MESSAGE_BYTES
    effects, said = Effects(), list[Any]()
    effects.attach(said.append)
    effects.emit(Attached(1, "1", "net", 1, "s1", "f", bytes(32), bytes(32), "none", bytes(32), 0))
    effects.audit(*(entry,) * (2 * MAX_AUDIT_ENTRIES + 1))
    assert [len(message.entries) for message in said[1:]] == [MAX_AUDIT_ENTRIES, MAX_AUDIT_ENTRIES, 1]


def test_what_is_bounded_is_not() -> None:
    kind = Annotated[
        tuple[Annotated[str, msgspec.Meta(pattern=r"^[a-z]{1,3}(x|y)?$")], ...], msgspec.Meta(max_length=2)
    ]
    assert not list(unbounded(inspect.type_info(kind), "here"))
