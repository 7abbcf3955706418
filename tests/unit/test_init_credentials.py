"""What `init coordinator`, `init client` and `coordinator token` write and print fits together, and shows no token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from appliance import cli
from appliance.api.credentials import load_token, token_sha256
from appliance.coordinator.config import load_config
from appliance.coordinator.credentials import Readers, Unauthorized
from policies.load import load_policy


def keymoot(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["keymoot", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


def printed(text: str, key: str) -> list[dict[str, str]]:
    """The YAML list that follows `key:` in what a command printed."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip() == f"{key}:")
    end = next(number for number in range(start + 1, len(lines)) if not lines[number].startswith("  "))
    entries: list[dict[str, str]] = yaml.safe_load("\n".join(lines[start:end]))[key]
    return entries


def test_what_is_printed_lets_read_and_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    c, k = tmp_path / "c", tmp_path / "k"
    assert keymoot(monkeypatch, "init", "coordinator", str(c), "--network", "net") == 0
    shown = capsys.readouterr().out
    config = load_config(c / "coordinator.yaml")
    operator = load_token(c / "operator.token")
    assert Readers(config.api.readers).by_authorization(f"Bearer {operator}") == "operator"
    assert load_policy(config.api.clients).clients == ()

    client = ("--network", "net", "--name", "Pay.outs", "--api", "https://localhost:1", "--api-ca", str(c / "ca.pem"))
    assert keymoot(monkeypatch, "init", "client", str(k), *client) == 0
    shown += (told := capsys.readouterr().out)
    (entry,) = printed(told, "clients")
    (reader,) = printed(told, "readers")
    clients = config.api.clients
    clients.write_text(clients.read_text().replace("clients: []", "clients: " + json.dumps([entry])))
    file = c / "coordinator.yaml"
    assert file.read_text().count("  readers:\n") == 1
    file.write_text(file.read_text().replace("  readers:\n", f"  readers:\n    - {json.dumps(reader)}\n"))
    config = load_config(file)
    token = load_token(k / "client.token")
    assert Readers(config.api.readers).by_authorization(f"Bearer {token}") == "Pay.outs"
    assert [one.id for one in load_policy(clients).clients] == ["Pay.outs"]
    for secret in (operator, token):
        assert secret not in shown
        assert secret not in file.read_text()


def test_a_token_for_one_more_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert keymoot(monkeypatch, "coordinator", "token", "grafana") == 0
    token, told = load_token(tmp_path / "grafana.token"), capsys.readouterr().out
    assert printed(told, "readers") == [{"name": "grafana", "token_sha256": token_sha256(token)}]
    assert token not in told
    assert keymoot(monkeypatch, "coordinator", "token", "grafana") == cli.EXIT_CALLER
    assert load_token(tmp_path / "grafana.token") == token
    assert keymoot(monkeypatch, "coordinator", "token", "x", "--out", "y", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"file": "y", "name": "x", "token_sha256": token_sha256(load_token(tmp_path / "y"))}
    assert keymoot(monkeypatch, "coordinator", "token", "../x") == cli.EXIT_CALLER
    assert keymoot(monkeypatch, "coordinator", "token", "") == cli.EXIT_CALLER


def test_readers_without_tokens_know_nobody() -> None:
    with pytest.raises(Unauthorized):
        Readers(()).by_authorization("Bearer kmt_x")
    assert Readers(()).by_certificate("anybody") is None
