"""The JSON Schema of policy files, made from the structs that read them: for editors. Enclaves check more."""

from __future__ import annotations

import inspect
import json
from typing import Any

import msgspec

from policies.model import Policy


def policy_schema() -> str:
    """The schema as indented JSON, the same for the same structs."""
    (reference,), definitions = msgspec.json.schema_components([Policy], ref_template="#/$defs/{name}")
    schema: dict[str, Any] = {
        "title": "Keymoot policy",
        "description": "A signer's own list of permissions. What no rule permits is refused.",
        **reference,
        "$defs": {name: _plain(definitions[name]) for name in sorted(definitions)},
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _plain_text(name: str, value: str) -> str:
    if name == "pattern":
        return value.replace(r"$(?!\n)", "$")
    return inspect.cleandoc(value) if name == "description" else value


def _plain(schema: Any) -> Any:
    """Patterns as every editor reads them: without the look-ahead that Python needs against a last line break."""
    if isinstance(schema, dict):
        return {
            name: _plain_text(name, value) if isinstance(value, str) else _plain(value)
            for name, value in schema.items()
        }
    return [_plain(one) for one in schema] if isinstance(schema, list) else schema
