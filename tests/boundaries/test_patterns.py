"""Every pattern of a message or file ends where the text ends: `$` alone lets a trailing newline through."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from policies.requests import Hash, KeyCreation

ROOT = Path(__file__).resolve().parents[2]
PATTERN = re.compile(r'(?:pattern=|_PATTERN = )r"([^"]+)"')


def test_every_pattern_is_anchored_at_both_ends() -> None:
    found = [
        (path.name, pattern)
        for package in ("appliance", "enclave", "policies")
        for path in sorted((ROOT / package).rglob("*.py"))
        for pattern in PATTERN.findall(path.read_text())
    ]
    assert len(found) > 20
    loose = [entry for entry in found if not (entry[1].startswith("^") and entry[1].endswith(r"$(?!\n)"))]
    assert loose == [("profile.py", "^https://")]  # the rest of an address is the HTTP library's to judge


@pytest.mark.parametrize(("field", "value"), [("label", "hot/1\n"), ("external_id", "a\n"), ("curve", "secp256k1\n")])
def test_a_trailing_newline_is_refused(field: str, value: str) -> None:
    good = {"scheme": "ECDSA", "curve": "secp256k1", "signers": 3, "tolerate": 1, "label": "hot/1", "externalId": "a"}
    name = "externalId" if field == "external_id" else field
    assert msgspec.convert(good, KeyCreation)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**good, name: value}, KeyCreation)


def test_a_hash_with_a_trailing_newline_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kind": "Hash", "hash": "0x" + "00" * 32 + "\n", "externalId": "a"}, Hash)
