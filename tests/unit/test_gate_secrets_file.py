"""The file of the gate's secrets: replaced whole, on disk when it is said, with the owner and mode that it had."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from enclave import files
from enclave.errors import CallerError


def test_a_new_seal_keeps_the_mode_and_the_directory_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced, sync = tmp_path / "gate", list[bool](), os.fsync

    def noted(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    path.write_bytes(b"old")
    path.chmod(0o600)
    (tmp_path / "gate.new").write_bytes(b"left by a crash")
    files.replace_file(path, b"new", 0o640)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), synced) == (b"new", 0o600, [False, True])
    assert os.listdir(tmp_path) == ["gate"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_a_new_seal_keeps_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "gate"
    path.write_bytes(b"old")
    os.chown(path, 12345, 12346)
    files.replace_file(path, b"new", 0o640)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


def test_a_file_of_somebody_else_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gate"
    path.write_bytes(b"old")

    def refused(descriptor: int, user: int, group: int) -> None:
        raise PermissionError

    def other(self: Path) -> os.stat_result:
        return os.stat_result((0o100640, 1, 1, 1, 54321, 54321, 3, 0, 0, 0))

    monkeypatch.setattr(os, "fchown", refused)
    monkeypatch.setattr(Path, "stat", other)
    with pytest.raises(CallerError, match="belongs to another user"):
        files.replace_file(path, b"new", 0o640)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["gate"])
