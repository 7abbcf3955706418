"""All mistakes of a value that should be of some type, each with its place: a loader tells the first, a check all."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from policies.mistakes import Mistake

Step = str | int
Location = tuple[Step, ...]
Hook = Callable[[type, Any], Any]

# How msgspec says where and what: "Object contains unknown field `x` - at `$.clients[0]`"
_WHERE = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>[0-9]+)\]|\[\.\.\.\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`", re.DOTALL)


class Fault(NamedTuple):
    """`what` is wrong at `location`, for people `shown`; with `key` it is the name there that is wrong."""

    location: Location
    what: str
    shown: str
    key: bool = False


def faults_of(error: msgspec.ValidationError, within: Location = ()) -> Iterator[Fault]:
    """What msgspec's `error` about the value at `within` says: the first mistake, and others of the same struct."""
    found = _WHERE.fullmatch(str(error))
    what, path = (found["what"], found["path"] or "") if found else (str(error), "")
    location, shown = within, _shown(within) + path
    for step in _STEP.finditer(path):
        if step["name"] is None and step["index"] is None:
            break  # an entry of a free mapping: msgspec does not say which
        location += (step["name"] if step["index"] is None else int(step["index"]),)
    cause = error.__cause__
    if isinstance(cause, Mistake):
        yield from (Fault(location + one.path, str(one), shown + _shown(one.path)) for one in (cause, *cause.others))
        return
    if unknown := _UNKNOWN.fullmatch(what):
        yield Fault((*location, unknown["field"]), f"unknown field `{unknown['field']}`", shown, key=True)
    else:
        yield Fault(location, what, shown)


def _shown(steps: Location) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def find_faults(value: object, kind: Any, hook: Hook, within: Location = ()) -> Iterator[Fault]:
    """Everything that keeps `value` from being a `kind`. What spans several parts is looked for once each is right."""
    try:
        msgspec.convert(value, kind, strict=True, dec_hook=hook)
    except msgspec.ValidationError as error:
        inner = list(_inner_faults(value, _bare(kind), hook, within))
        yield from inner or faults_of(error, within)


def _bare(kind: Any) -> Any:
    """`kind` without annotations, and without None where it is one of two."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        others = [one for one in get_args(kind) if one is not type(None)]
        return _bare(others[0]) if len(others) == 1 else kind
    return kind


def _inner_faults(value: object, kind: Any, hook: Hook, within: Location) -> Iterator[Fault]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        hints = get_type_hints(kind, include_extras=True)
        fields = {field.encode_name: hints[field.name] for field in msgspec.structs.fields(kind)}
        for name, item in value.items():
            if name in fields:
                yield from find_faults(item, fields[name], hook, (*within, name))
            else:
                yield Fault((*within, name), f"unknown field `{name}`", _shown(within), key=True)
        for field in msgspec.structs.fields(kind):
            if field.required and field.encode_name not in value:
                yield Fault(within, f"Object missing required field `{field.encode_name}`", _shown(within))
    elif get_origin(kind) is tuple and isinstance(value, list):
        for place, item in enumerate(value):
            yield from find_faults(item, get_args(kind)[0], hook, (*within, place))
    elif get_origin(kind) is dict and isinstance(value, dict):
        for name, item in value.items():
            yield from find_faults(item, get_args(kind)[1], hook, (*within, name))
