"""The kind of key of a PIN's credential: with what systemd encrypted the one that a new PIN is to replace."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from appliance.setup.pins import _kind_of_key

KIND = bytes(range(16))


def test_it_is_what_the_credential_begins_with(tmp_path: Path) -> None:
    credential = tmp_path / "pin.cred"
    credential.write_bytes(base64.b64encode(KIND + bytes(100)))
    assert _kind_of_key(credential) == KIND


@pytest.mark.parametrize("damaged", [b"", b"\xff" * 24, b"A" * 23, b"Not base64, but a PIN: 4711"])
def test_of_a_damaged_one_there_is_none(tmp_path: Path, damaged: bytes) -> None:
    credential = tmp_path / "pin.cred"
    credential.write_bytes(damaged)
    assert _kind_of_key(credential) == b""
