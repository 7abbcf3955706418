"""Finds every place in the code that turns bytes or text from outside into values: what a fuzz test must cover."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("appliance", "enclave", "policies")
# Calls by their last two names, or by their last one where it says enough.
DECODING = {
    "json.decode", "json.Decoder", "json.loads", "json.load", "msgpack.decode", "msgpack.Decoder", "yaml.parse",
    "yaml.decode", "msgspec.convert", "wire.decode", "decode_message", "parse_json", "load_yaml", "parse_yaml",
    "parse_strictly", "load_pem_x509_certificate", "load_pem_x509_certificates", "load_der_x509_certificate",
    "load_pem_private_key", "load_der_private_key", "b64decode", "urlsafe_b64decode", "bytes.fromhex", "fromisoformat",
    "from_encoded_point", "pickle.loads", "decode_as", "parse_as", "a2b_base64", "tomllib.load", "tomllib.loads",
    "ElementTree.parse",
}  # fmt: skip


def decoding_places() -> Iterator[tuple[str, str]]:
    """`(module:function, call)` of every decoding call in the packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            tree = ast.parse(path.read_text())
            # `from enclave.wire import decode`, and the like within enclave.wire itself
            plain = {
                alias.asname or alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("enclave", "policies"))
                for alias in node.names
                if alias.name == "decode"
            }
            yield from _in(tree, module, (), plain)


def _in(node: ast.AST, module: str, inside: tuple[str, ...], plain: set[str]) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        within = (*inside, child.name) if named else inside  # type: ignore[attr-defined]
        if isinstance(child, ast.Call) and (call := _decoding_call(child, plain)):
            yield f"{module}:{'.'.join(inside) or '<module>'}", call
        yield from _in(child, module, within, plain)


def _decoding_call(call: ast.Call, plain: set[str]) -> str:
    name = ast.unparse(call.func)
    parts = name.split(".")
    if parts[-1] in DECODING or ".".join(parts[-2:]) in DECODING or name in plain:
        return name
    return ""
