"""The YAML loader: what it refuses, and that it says where."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from policies.errors import CallerError
from policies.load import MAX_FILE_BYTES, load_policy, load_yaml, parse_yaml
from policies.model import Policy


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    flag: bool = False
    text: str | None = None
    number: int | float = 0


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    items: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}


def complaint(text: str, kind: type[object] = Outer) -> str:
    with pytest.raises(CallerError) as caught:
        parse_yaml(text, kind, "f.yaml")
    return str(caught.value)


def test_scalars_of_the_safe_core_schema() -> None:
    def value(text: str) -> object:
        parsed = parse_yaml(f"v: {text}", dict, "f.yaml")
        return parsed["v"]

    same = [
        "yes",
        "no",
        "on",
        "off",
        "2026-01-01",
        "2026-01-01T00:00:00Z",
        "0x10",
        "0o7",
        "012",
        "+1",
        "1_000",
    ]
    for text in [*same, ".inf", ".nan", "-x", "1:30", "=", "Yes", "y"]:
        assert value(text) == text
    assert [value(text) for text in ("true", "False", "null", "~", "")] == [True, False, None, None, None]
    assert value("-12") == -12
    assert value("1.5e3") == 1500.0
    assert value("'1'") == "1"
    assert value('"true"') == "true"
    assert value("|\n  12\n") == "12\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("items: []\nitems: []", "f.yaml:2:1: duplicate key `items` (first on line 1)"),
        ('items: []\n"items": []', "f.yaml:2:1: duplicate key `items` (first on line 1)"),
        ("items:\n  - {flag: true, flag: false}", "f.yaml:2:18: duplicate key `flag` (first on line 2)"),
        ("items: &a []", "f.yaml:1:8: anchors and aliases are not allowed"),
        ("items: *a", "f.yaml:1:8: anchors and aliases are not allowed"),
        ("&a items: []", "f.yaml:1:1: anchors, aliases and tags are not allowed"),
        ("!!str items: []", "f.yaml:1:1: anchors, aliases and tags are not allowed"),
        ("*a : []", "f.yaml:1:1: a key must be a plain string"),
        ("? [a]\n: 1", "f.yaml:1:3: a key must be a plain string"),
        ("<<: {items: []}", "f.yaml:1:1: merge keys are not allowed"),
        ("!!python/name:os.system x", "f.yaml:1:1: tags are not allowed"),
        ("items: !!seq []", "f.yaml:1:8: tags are not allowed"),
        ("items: ! []", "f.yaml:1:8: tags are not allowed"),
        ("---\nitems: []\n---\nitems: []", "f.yaml:3:1: a second document is not allowed"),
        ("%YAML 1.1\n---\nitems: []", "f.yaml:1:1: YAML directives are not allowed"),
        ("1: a", "f.yaml:1:1: the key `1` is not a string: quote it"),
        ("null: a", "f.yaml:1:1: the key `null` is not a string: quote it"),
        ("true: a", "f.yaml:1:1: the key `true` is not a string: quote it"),
        ("[" * 100_000, "f.yaml:1:34: nested deeper than 32"),
        ("a: " + "9" * 5000, "f.yaml:1:4: a number longer than 32 characters"),
        ("a: 1e999", "f.yaml:1:4: the number 1e999 is out of range"),
        ("", "f.yaml:1:1: the file is empty"),
        ("# only this\n", "f.yaml:2:1: the file is empty"),
        ("items: []\nname: \x07", "f.yaml:2:7: a character that YAML does not allow"),
        ("colour: red", "f.yaml:1:1: unknown field `colour`"),
        ("items:\n  - flag: true\n    colour: red", "f.yaml:3:5: unknown field `colour` (in items[0])"),
        ("named:\n  x: {colour: red}", "f.yaml:2:3: unknown field `colour` (in named[...])"),
        ("items:\n  - flag: yes", "f.yaml:2:11: Expected `bool`, got `str` (in items[0].flag)"),
        ("items: 3", "f.yaml:1:8: Expected `array`, got `int` (in items)"),
        ("[]", "f.yaml:1:1: Expected `object`, got `array`"),
    ],
)
def test_what_is_refused_and_where(text: str, said: str) -> None:
    assert complaint(text) == said


def test_broken_yaml_says_where() -> None:
    assert complaint("items: []\n  - x").startswith("f.yaml:2:3: not valid YAML: ")


def test_unknown_policy_field_names_line_and_column() -> None:
    text = "version: 1\nclients: []\nrules:\n  - name: r\n    clients: [a]\n    cliens: [b]\n"
    assert complaint(text, Policy) == "f.yaml:6:5: unknown field `cliens` (in rules[0])"


def test_invariants_of_structs_come_with_a_position() -> None:
    text = "version: 1\nclients: []\nrules:\n  - {name: r, clients: [a], actions: [sign], labels: [x]}\n"
    assert complaint(text, Policy) == (
        "f.yaml:4:38: rule r permits `sign` but no `kinds`: it would permit nothing (in rules[0].actions)"
    )


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    with pytest.raises(CallerError, match=r"p\.yaml: cannot be read: No such file or directory"):
        load_policy(path)
    path.write_bytes(b"version: 1\nclients: []\nrules: []\n")
    assert load_policy(path) == Policy(1, (), ())
    path.write_bytes(b"version: 1\nrules: \xff\n")
    with pytest.raises(CallerError, match=r"p\.yaml:2:8: not UTF-8"):
        load_policy(path)
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(CallerError, match=r"p\.yaml: larger than 1048576 bytes"):
        load_yaml(path, Outer)
    with pytest.raises(CallerError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path, Outer)
