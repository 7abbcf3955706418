"""Files of evidence at the signer: whole, named by their digest, a bounded number, and never in the way of anything."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from appliance.signer.evidence import MAX_FILES, SUFFIX, UNFINISHED, EvidenceFiles
from enclave import wire

NAME = b"n" * 32


def part(number: int, count: int, data: bytes = b"x", name: bytes = NAME) -> wire.EvidencePart:
    return wire.EvidencePart(name, "presign", number, count, data)


async def test_parts_become_one_file(tmp_path: Path) -> None:
    files = EvidenceFiles(tmp_path / "evidence", lambda: 1_800_000_000.0)
    assert [files.take(part(number, 3, bytes([number]))) for number in (1, 2)] == [None, None]
    whole = files.take(part(3, 3, b"\3"))
    assert whole == b"\1\2\3"
    await files.keep(part(3, 3), whole)
    (file,) = (tmp_path / "evidence").iterdir()
    assert file.name == f"1800000000-presign-{NAME.hex()[:32]}.evidence"
    assert file.read_bytes() == whole
    assert (tmp_path / "evidence").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "parts",
    [
        [part(2, 2)],
        [part(1, 3), part(3, 3)],
        [part(1, 2), part(2, 2, name=b"o" * 32)],
        [part(1, 2), part(2, 2), part(2, 2)],
    ],
)
def test_parts_out_of_order_are_refused(parts: list[wire.EvidencePart], tmp_path: Path) -> None:
    files = EvidenceFiles(tmp_path)
    *right, wrong = parts
    for each in right:
        files.take(each)
    with pytest.raises(wire.Malformed, match="out of order"):
        files.take(wrong)
    assert files.take(part(1, 1, b"again")) == b"again"


async def test_the_oldest_goes(tmp_path: Path) -> None:
    now_s = 0.0
    files = EvidenceFiles(tmp_path, lambda: now_s)
    for number in range(MAX_FILES + 3):
        now_s = 1_800_000_000.0 + number
        await files.keep(part(1, 1, name=bytes([number]) * 32), b"data")
    kept = sorted(int(name.partition("-")[0]) for name in os.listdir(tmp_path))
    assert kept == [1_800_000_003 + number for number in range(MAX_FILES)]


async def test_a_disk_that_does_not_take_it_costs_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("a file where the directory should be")
    await EvidenceFiles(tmp_path / "evidence").keep(part(1, 1), b"data")


async def test_a_failed_write_leaves_nothing_and_what_an_earlier_process_left_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"1-presign-ab{UNFINISHED}").write_bytes(b"half")
    files = EvidenceFiles(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        await files.keep(part(1, 1), b"data")
    assert os.listdir(tmp_path) == []
    await files.keep(part(1, 1), b"data")
    assert [name.endswith(SUFFIX) for name in os.listdir(tmp_path)] == [True]


async def test_many_at_once_are_written_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, inside, most = EvidenceFiles(tmp_path), 0, 0
    sync = os.fsync

    def counted(descriptor: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        sync(descriptor)
        inside -= 1

    monkeypatch.setattr(os, "fsync", counted)
    await asyncio.gather(
        *(files.keep(part(1, 1, name=bytes([number]) * 32), b"data") for number in range(MAX_FILES + 8))
    )
    assert (most, len(os.listdir(tmp_path))) == (1, MAX_FILES)
