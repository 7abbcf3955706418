"""Log lines that signers cause: none of them fills the coordinator's disk, or hides another's."""

from __future__ import annotations

import pathlib

from structlog.testing import capture_logs

from appliance.coordinator.rationed import LINES_AT_ONCE, LINES_PER_S, RationedLines
from enclave import wire
from tests.fakes.coordinator_side import FakeNetwork


def test_each_kind_of_each_signer_has_its_share_and_what_was_passed_over_is_counted() -> None:
    now_s = 0.0
    lines = RationedLines(lambda: now_s)
    with capture_logs() as told:
        for _ in range(3 * LINES_AT_ONCE):
            lines.tell(1, "info", "link", peer=2)
        lines.tell(2, "info", "link", peer=1)
        lines.tell(1, "warning", "convicted")
        now_s = 1 / LINES_PER_S
        lines.tell(1, "info", "link", peer=2)
    assert [each["event"] for each in told] == ["link"] * LINES_AT_ONCE + ["link", "convicted", "link"]
    assert told[-1]["not_told"] == 2 * LINES_AT_ONCE


async def test_a_signer_that_reports_without_end_writes_so_many_lines(tmp_path: pathlib.Path) -> None:
    reports = (
        wire.LinkReport(2, True, ""),
        wire.Convicted(bytes(16), "presign", b"c" * 32, "3.4", "x", (2,), (), b"e" * 32),
        wire.Recalled(bytes(16), None),
    )
    async with FakeNetwork.start(tmp_path) as net:
        with capture_logs() as told:
            for report in reports:
                for _ in range(500):
                    net.coordinator.network.on_report(1, report)
    for event in ("link", "convicted", "report-dropped"):
        count = sum(each["event"] == event for each in told)
        assert LINES_AT_ONCE <= count <= LINES_AT_ONCE + 5, event
