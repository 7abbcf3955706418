"""Strict JSON: one reading for every text, and no input that harms the parser."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.json_strict import MAX_DEPTH, JsonInvalid, parse_as, parse_json


class Pair(msgspec.Struct, forbid_unknown_fields=True):
    a: int
    b: dict[str, Any] = {}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":[', b'"\\"",[', b"[ "])
def test_deep_nesting_is_refused_whatever_the_recursion_limit(opening: bytes) -> None:
    """A library had raised the limit to 100000, and 60 kB of brackets ended the process with a segmentation fault."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        with pytest.raises(JsonInvalid, match=f"nested deeper than {MAX_DEPTH}"):
            parse_json(opening * 100_000)
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize("data", [b'"' + b'\\"' * 60_000, b'"' * 120_001, b'"' + b"\\" * 120_000, b'"a' * 60_001])
def test_what_does_not_end_costs_no_more_than_what_does(data: bytes) -> None:
    """A string without its end was searched for from each of its quotes: 16 kB took a second, 128 kB minutes."""
    started_s = time.process_time()
    with pytest.raises(JsonInvalid):
        parse_json(data)
    assert time.process_time() - started_s < 1


def test_depth_counts_brackets_outside_strings_only() -> None:
    most = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(most) == json.loads(most)
    with pytest.raises(JsonInvalid, match="nested deeper"):
        parse_json(b"[" + most + b"]")
    for text in ("[" * 99, '"' + "[" * 99, '\\"' + "{" * 99, "\\", "[\n{" * 99):
        assert parse_json(json.dumps([text, text]).encode()) == [text, text]
    assert parse_json(b"[" + b"[]," * 999 + b"[]]") == [[]] * 1000


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1, "a": 1}', b'[{"a": 1, "\\u0061": 2}]', b"NaN", b"[Infinity]", b"-Infinity", b"\xef\xbb\xbf{}", b"",
        b'"\xff"', '"é"'.encode("utf-16"), b"{} {}", b"01", b"'a'", b'{"a": 1,}', b"9" * 5000, b'"', b'"\\', b"]",
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(JsonInvalid):
        parse_json(data)


@given(VALUES)
def test_json_of_another_writer_is_read(value: object) -> None:
    with contextlib.suppress(JsonInvalid):
        assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps([str(value)]).encode()) == [str(value)]


@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:\\u0a1 ', max_size=60).map(str.encode))
def test_any_bytes_are_json_or_refused(data: bytes) -> None:
    with contextlib.suppress(JsonInvalid):
        parse_json(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"b":{}}', b'{"b":{},"a":1}', b'{"a":1}', b' { "a" : 1 } ', b'{"\\u0061":1}',
        b'{"a":1,"b":{"a":1,"b":[2]}}', b'{"a":1,"b":{"c":' + b"9" * 40 + b"}}",
    ],
)  # fmt: skip
def test_our_types_are_read_however_they_are_written(data: bytes) -> None:
    assert parse_as(data, Pair) == Pair(**json.loads(data))


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}', b'{"a":1,"b":{},"a":1}', b'{"a":1,"b":{},"\\u0061":1}', b'{"a":1,"b":{"c":1,"c":1}}',
        b'{"a":1,"b":{"c":[{"d":1,"d":1}]}}', b'{"a":1,"b":{},"b":{}}', b'{"a":1,"b":{"c":NaN}}',
        b'{"a":1,"b":{"c":"\xff"}}',
        b'{"a":1,"b":{"c":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}}",
    ],
)  # fmt: skip
def test_our_types_are_not_read_of_what_is_refused(data: bytes) -> None:
    with pytest.raises((JsonInvalid, msgspec.DecodeError)):
        parse_as(data, Pair)


@given(VALUES)
def test_our_types_are_read_as_all_else_is(value: object) -> None:
    """Also of the text that our encoder writes, which nothing but the depth is looked at in."""
    for data in (json.dumps({"a": 1, "b": {"c": value}}).encode(), msgspec.json.encode({"a": 1, "b": {"c": value}})):
        try:
            expected = parse_json(data)
        except JsonInvalid:
            with pytest.raises((JsonInvalid, msgspec.DecodeError)):
                parse_as(data, Pair)
        else:
            with contextlib.suppress(msgspec.DecodeError):  # whole numbers of any length are no type of ours
                assert parse_as(data, Pair).b == expected["b"]
