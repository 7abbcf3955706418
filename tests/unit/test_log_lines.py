"""A log that cannot be written costs lines and never the process; what was lost is told."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import structlog

from appliance.telemetry import configure_logging
from enclave.log import Log
from policies.lines import LineSink


class Disk:
    """`os.write` on a disk with so much room."""

    def __init__(self, room: int) -> None:
        self.room, self.data = room, b""

    def write(self, _: int, data: memoryview) -> int:
        taken = min(len(data), self.room)
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.data += bytes(data[:taken])
        self.room -= taken
        return taken


def test_lines_that_do_not_fit_are_counted_and_told_with_the_next_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(room=8)
    monkeypatch.setattr(os, "write", disk.write)
    sink = LineSink(2, lambda count: f"lost {count}")
    sink.write("one")
    for _ in range(3):
        sink.write("cut in the middle")
    assert disk.data == b"one\ncut "
    disk.room = 1000
    sink.write("two")
    sink.write("three")
    assert disk.data == b"one\ncut \nlost 3\ntwo\nthree\n"


def test_the_enclaves_log_survives_a_closed_descriptor_and_a_full_device(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    Log("enclave", LineSink(full, str).write).error("nobody hears this")
    os.close(full)
    Log("enclave", LineSink(full, str).write).error("nor this")


def test_lines_stay_single_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        Log("enclave", LineSink(file.fileno(), str).write, signer="s1").warning("odd", reason="a\nb\u2028\udc80é")
    (line,) = path.read_text().split("\n")[:-1]
    assert json.loads(line)["reason"].startswith("a\nb")


# Delete, CSI of C1, an override and an isolate of direction, a zero-width space, a tag beyond the first plane.
ODD = "\x7f\x9b2J\u202e\u2066\u200b\U000e0041\x1b[31m"


@pytest.mark.parametrize("process", ["enclave", "others"])
def test_nothing_that_a_terminal_acts_on_is_in_a_line(process: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = f"/v1/{ODD}/é漢"
    if process == "enclave":
        Log("enclave").info("request", path=text)
    else:
        configure_logging("test")
        structlog.get_logger().info("request", path=text)
        structlog.reset_defaults()
    line = capfd.readouterr().err.rstrip("\n")
    assert line.isprintable()
    assert "é漢" in line
    assert json.loads(line)["path"] == text
