"""Any text: a value or `CallerError`, and nothing else."""

from __future__ import annotations

import contextlib

import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import CallerError
from policies.load import parse_yaml
from policies.model import Policy

YAMLISH = st.text(alphabet="ab:-[]{}#&*!|>%@`'\",? \n\t<1.~\\\u2028\ufeff\0é", max_size=60)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(YAMLISH | st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(CallerError):
        parse_yaml(text, object, "f")
    with contextlib.suppress(CallerError):
        parse_yaml(text, Policy, "f")


@given(st.dictionaries(st.text(max_size=5), PLAIN, max_size=4))
def test_plain_values_survive(value: dict[str, object]) -> None:
    # Quoted throughout, so that nothing depends on which plain scalars a dumper takes for strings.
    text = yaml.safe_dump(value, default_style='"').replace('!!null "null"', "null")
    for kind in ("int", "bool"):
        text = _unquote(text, f'!!{kind} "')
    assert parse_yaml(text, object, "f") == value


def _unquote(text: str, opening: str) -> str:
    pieces = text.split(opening)
    return pieces[0] + "".join(piece.replace('"', "", 1) for piece in pieces[1:])
