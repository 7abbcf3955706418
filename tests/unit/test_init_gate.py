"""`keymoot init gate`: what it writes is what the reference handler reads."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from appliance import cli, pki
from appliance.enrolment import new_secrets
from appliance.gate.config import load_config, load_secrets


def _init_gate(monkeypatch: pytest.MonkeyPatch, directory: Path) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["keymoot", "init", "gate", str(directory), "--listen", "127.0.0.1:8099"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_handler_reads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "g"
    assert not _init_gate(monkeypatch, directory)
    assert stat.S_IMODE((directory / "server.key").stat().st_mode) == pki.SECRET_MODE
    pki.write_new(directory / "gate-secrets.json", new_secrets(), pki.SECRET_MODE)
    config = load_config(directory / "gate.yaml")
    assert config.listen == "127.0.0.1:8099"
    assert (config.certificate, config.key) == (directory / "server.pem", directory / "server.key")
    assert load_secrets(config.secrets).request_hmac.startswith("whsec_")


def test_a_directory_that_has_a_gate_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _init_gate(monkeypatch, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert _init_gate(monkeypatch, tmp_path) == cli.EXIT_CALLER
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
