"""Files that hold a secret: what cannot be read is told without what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.private_files import read_private
from policies.errors import CallerError


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("away", 0o600, "No such file"),
        ("nu\0ll", 0o600, "null"),
        ("open", 0o640, "has mode 0640: run chmod 600"),
        ("long", 0o600, "is larger than 8 bytes"),
    ],
)
def test_what_is_no_private_file_is_refused(tmp_path: Path, name: str, mode: int, why: str) -> None:
    if name in ("open", "long"):
        (tmp_path / name).write_bytes(b"hunter2-" + (b"9" if name == "long" else b""))
        (tmp_path / name).chmod(mode)
    with pytest.raises(CallerError, match=why) as caught:
        read_private(tmp_path / name, "the token", 8)
    assert "hunter2" not in str(caught.value)


def test_a_private_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"hunter2-")
    (tmp_path / "token").chmod(0o600)
    assert read_private(tmp_path / "token", "the token", 8) == b"hunter2-"
