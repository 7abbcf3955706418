"""`keymoot enclave accept-rollback`: what it writes is what the enclave reads, and nothing else passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import cli
from appliance.enrolment import roster_yaml
from enclave.log import Log
from enclave.run import _accepted
from policies.acceptance import MAX_ACCEPTED, AcceptedState
from tests.fakes.identities import roster

BOOT = "0123456789abcdef"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "roster.yaml").write_text(roster_yaml(roster()))
    path = tmp_path / "enclave.yaml"
    path.write_text("network: test\nsigner: signer-1\nroster: roster.yaml\n")
    return path


def run(monkeypatch: pytest.MonkeyPatch, config: Path, name: str, version: str, boot: str) -> int | str | None:
    arguments = ["enclave", "accept-rollback", name, "--version", version, "--boot", boot, "--config", str(config)]
    monkeypatch.setattr("sys.argv", ["keymoot", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def read(config: Path, told: list[str] | None = None) -> tuple[AcceptedState, ...]:
    lines: list[str] = [] if told is None else told
    return tuple(_accepted(config.parent / "accepted-states.yaml", Log("enclave", write=lines.append)))


def test_the_enclave_reads_what_was_written(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(config) == ()
    assert not run(monkeypatch, config, "signer-2", "90", BOOT)
    assert not run(monkeypatch, config, "signer-3", "0", "1234567890123456")
    assert not run(monkeypatch, config, "signer-2", "90", BOOT)
    assert read(config) == (AcceptedState("signer-3", 0, "1234567890123456"), AcceptedState("signer-2", 90, BOOT))
    assert sorted(path.name for path in config.parent.iterdir()) == [
        "accepted-states.yaml", "enclave.yaml", "roster.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "version", "boot"),
    [
        ("signer-9", "90", BOOT),
        ("signer-2", "-1", BOOT),
        ("signer-2", "x", BOOT),
        ("signer-2", "90", BOOT[:-1]),
        ("signer-2", "90", BOOT.upper()),
        ("signer-2", "90", BOOT + "0"),
        ("signer-2", "90", ""),
    ],
)
def test_a_mistake_writes_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, boot: str
) -> None:
    assert run(monkeypatch, config, name, version, boot) == cli.EXIT_CALLER
    assert not (config.parent / "accepted-states.yaml").exists()


def test_the_file_stays_bounded(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f'  - {{signer: signer-2, version: {n}, boot: "{n:016x}"}}\n' for n in range(MAX_ACCEPTED))
    (config.parent / "accepted-states.yaml").write_text(f"version: 1\naccepted:\n{lines}")
    assert len(read(config)) == MAX_ACCEPTED
    assert not run(monkeypatch, config, "signer-2", "1000", BOOT)
    assert len(read(config)) == MAX_ACCEPTED
    assert read(config)[-1] == AcceptedState("signer-2", 1000, BOOT)


def test_a_file_that_cannot_be_used_accepts_nothing_and_is_told(config: Path) -> None:
    (config.parent / "accepted-states.yaml").write_text("version: 1\naccepted: [{signer: signer-2}]\n")
    told: list[str] = []
    assert read(config, told) == ()
    assert len(told) == 1
    assert "accepted states are not readable" in told[0]
