"""The one way a YAML file becomes a typed value: strict, and every error names file, line and column.

YAML is read by events, in the safe core schema: plain `null`, `~`, `true`, `false`, decimal integers and
fractions mean what they say, and everything else (`yes`, dates, `0x10`, `012`, `.inf`) stays a string.
Refused: duplicate keys, keys that are not strings, anchors, aliases, merge keys, tags, directives, a second
document, deep nesting, large files. Then msgspec converts strictly, which refuses unknown fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol, TypeVar

import msgspec
import yaml

from policies.errors import CallerError
from policies.faults import Fault, Location, faults_of, find_faults
from policies.model import Policy

MAX_FILE_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_NUMBER_CHARS = 32

T = TypeVar("T")
Position = tuple[int, int]

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_FRACTION = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


class Wrong(NamedTuple):
    """A mistake in a file. `line` and `column` start at 1."""

    line: int
    column: int
    what: str


def load_policy(path: Path) -> Policy:
    """The policy in the YAML file `path`. Raises `CallerError` as `load_yaml` does."""
    return load_yaml(path, Policy)


def load_yaml(path: Path, kind: type[T]) -> T:
    """The YAML file `path` (at most 1 MiB of UTF-8) as a `kind`.

    Raises `CallerError` "FILE:line:col: what", or "FILE: what" where the file itself is the trouble.
    """
    return parse_yaml(read_text(path), kind, str(path))


def read_text(path: Path) -> str:
    """The text of the file `path`, at most 1 MiB of UTF-8. Raises `CallerError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CallerError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise CallerError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise CallerError(f"{path}:{line}:{column}: not UTF-8") from None


def parse_yaml(text: str, kind: type[T], name: str) -> T:
    """`text` as a `kind`. Raises `CallerError` "NAME:line:col: what"."""
    if len(text) > MAX_FILE_BYTES:
        raise CallerError(f"{name}: larger than {MAX_FILE_BYTES} characters")
    reader = _Reader()
    try:
        value = reader.read(text)
        return msgspec.convert(value, kind, strict=True, dec_hook=_to_path)
    except _Refused as error:
        wrong = error.wrong
    except msgspec.ValidationError as error:
        wrong = reader.locate(next(faults_of(error)))
    raise CallerError(f"{name}:{wrong.line}:{wrong.column}: {wrong.what}")


def find_wrong(text: str, kind: type[object]) -> list[Wrong]:
    """All mistakes of `text` as a `kind`, in the order of the file: the first alone where it is no YAML."""
    reader = _Reader()
    try:
        value = reader.read(text)
    except _Refused as error:
        return [error.wrong]
    return sorted({reader.locate(fault) for fault in find_faults(value, kind, _to_path)})


class _Refused(Exception):
    """What `_Reader` does not take."""

    def __init__(self, wrong: Wrong) -> None:
        super().__init__(wrong)
        self.wrong = wrong


class _Mark(Protocol):
    """What PyYAML's two kinds of marks have in common; both numbers start at 0."""

    @property
    def line(self) -> int: ...

    @property
    def column(self) -> int: ...


def _to_path(kind: type, value: object) -> object:
    """msgspec knows no paths: a string stands for one. `object` takes any value."""
    if kind is object:
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected `str`, got `{type(value).__name__}`")


class _Reader:
    """Builds plain values out of YAML events and remembers where each came from."""

    def __init__(self) -> None:
        self._values: dict[Location, Position] = {}
        self._keys: dict[Location, Position] = {}

    def read(self, text: str) -> object:
        """The one document in `text` as dicts, lists, strings, numbers, booleans and None."""
        try:
            return self._document(yaml.parse(text, Loader=yaml.SafeLoader))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._refuse(_position(mark), f"not valid YAML: {error.problem or error.context}")
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
            self._refuse((line, column), "a character that YAML does not allow")

    def locate(self, fault: Fault) -> Wrong:
        """`fault` with line and column: of its key or value, or of the innermost that the file has around it."""
        location = fault.location
        position = self._keys.get(location) if fault.key else None
        while position is None and location and location not in self._values:
            location = location[:-1]
        line, column = position or self._values.get(location, (1, 1))
        where = fault.shown.lstrip(".")
        return Wrong(line, column, f"{fault.what} (in {where})" if where else fault.what)

    def _refuse(self, position: Position, what: str) -> NoReturn:
        raise _Refused(Wrong(*position, what)) from None

    def _document(self, events: Iterator[yaml.Event]) -> object:
        next(events)  # the stream's start
        start = next(events)
        if not isinstance(start, yaml.DocumentStartEvent):
            self._refuse(_position(start.start_mark), "the file is empty")
        if start.version or start.tags:
            self._refuse(_position(start.start_mark), "YAML directives are not allowed")
        value = self._value(next(events), events, ())
        next(events)  # the document's end
        after = next(events)
        if not isinstance(after, yaml.StreamEndEvent):
            self._refuse(_position(after.start_mark), "a second document is not allowed")
        return value

    def _value(self, event: yaml.Event, events: Iterator[yaml.Event], location: Location) -> object:
        position = _position(event.start_mark)
        self._values[location] = position
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            self._refuse(position, "anchors and aliases are not allowed")
        if getattr(event, "tag", None) is not None:
            self._refuse(position, "tags are not allowed")
        if len(location) > MAX_DEPTH:
            self._refuse(position, f"nested deeper than {MAX_DEPTH}")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, location)
        return self._mapping(events, location)

    def _sequence(self, events: Iterator[yaml.Event], location: Location) -> list[object]:
        items: list[object] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._value(event, events, (*location, len(items))))
        return items

    def _mapping(self, events: Iterator[yaml.Event], location: Location) -> dict[str, object]:
        fields: dict[str, object] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self._key(event)
            position = _position(event.start_mark)
            if key in fields:
                first = self._keys[(*location, key)]
                self._refuse(position, f"duplicate key `{key}` (first on line {first[0]})")
            self._keys[(*location, key)] = position
            fields[key] = self._value(next(events), events, (*location, key))
        return fields

    def _key(self, event: yaml.Event) -> str:
        position = _position(event.start_mark)
        if not isinstance(event, yaml.ScalarEvent):
            self._refuse(position, "a key must be a plain string")
        if event.anchor is not None or event.tag is not None:
            self._refuse(position, "anchors, aliases and tags are not allowed")
        key = self._scalar(event)
        if not isinstance(key, str):
            self._refuse(position, f"the key `{event.value}` is not a string: quote it")
        if event.style is None and key == "<<":
            self._refuse(position, "merge keys are not allowed")
        return key

    def _scalar(self, event: yaml.ScalarEvent) -> object:
        text: str = event.value
        if not _encodable(text):
            self._refuse(_position(event.start_mark), "half of a surrogate pair is no character")
        if event.style is not None:
            return text
        if text in _NULLS:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if not _FRACTION.fullmatch(text):
            return text
        if len(text) > MAX_NUMBER_CHARS:
            self._refuse(_position(event.start_mark), f"a number longer than {MAX_NUMBER_CHARS} characters")
        if _INTEGER.fullmatch(text):
            return int(text)
        number = float(text)
        if not math.isfinite(number):
            self._refuse(_position(event.start_mark), f"the number {text} is out of range")
        return number


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # an escape such as "\\ud800"
        return False
    return True


def _position(mark: _Mark | None) -> Position:
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
