"""Certificates of a directory: when they expire; renewing them, at once or not at all."""

from __future__ import annotations

import datetime
import json
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509

from appliance import cli, configure, pki, renewal, templates
from appliance.cli.pki import LEAF_DAYS
from appliance.tls import client_context, server_context
from policies.errors import CallerError

NOW = datetime.datetime(2030, 1, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def _today() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    """A coordinator's directory as `keymoot init coordinator` makes it, with the CA of one signer's operator."""
    other = pki.make_ca("s1 of net", days=100)
    setup = templates.CoordinatorSetup("net", "coordinator", names=("a.example",), signer_cas=(other.certificate_pem,))
    configure.write_coordinator(tmp_path / "c", setup)
    return tmp_path / "c"


def _read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _put_short_lived(directory: Path, days: int) -> None:
    """A server certificate of the directory's CA that expires in `days`."""
    ca = pki.load_ca(directory / "ca.pem", directory / "ca.key")
    for name in ("server.pem", "server.key"):
        (directory / name).unlink()
    issued = pki.issue(ca, "coordinator", pki.Purpose.SERVER, names=("a.example",), days=days)
    issued.write(directory / "server.pem", directory / "server.key")


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_show_lists_every_certificate_soonest_first(coordinator: Path) -> None:
    shown = renewal.show(coordinator, _today())
    told = [(one.file, one.role, one.renewable, one.subject) for one in shown]
    assert told == [
        ("signers-ca.pem", "authority", False, "CN=s1 of net"),
        ("server.pem", "leaf", True, "CN=coordinator"),
        ("ca.pem", "authority", False, "CN=coordinator coordinator of net"),
    ]
    assert [one.days_left for one in shown] == [99, 824, 3649]


@pytest.mark.parametrize(
    ("before", "days_left", "due"),
    [(30 * DAY, 30, False), (30 * DAY - datetime.timedelta(seconds=1), 29, True), (-DAY, -1, True)],
)
def test_days_left_and_the_warning_below_30(
    coordinator: Path, before: datetime.timedelta, days_left: int, due: bool
) -> None:
    end = _read(coordinator / "server.pem").not_valid_after_utc
    server = next(one for one in renewal.show(coordinator, end - before) if one.file == "server.pem")
    assert (server.days_left, server.is_due) == (days_left, due)


def test_renewed_keeps_key_names_and_purpose_and_the_old_one(coordinator: Path) -> None:
    before = _contents(coordinator)
    old = _read(coordinator / "server.pem")
    renewed = renewal.renew(coordinator, NOW, days=100)
    assert renewed == [renewal.Renewed("server.pem", "server.pem.old", "2030-04-11T12:00:00Z", 100)]
    new = _read(coordinator / "server.pem")
    assert new.public_key() == old.public_key()
    assert new.subject == old.subject
    assert list(new.extensions) == list(old.extensions)
    assert new.serial_number != old.serial_number
    assert new.not_valid_after_utc == NOW + 100 * DAY
    after = _contents(coordinator)
    assert after.pop("server.pem.old") == before["server.pem"]
    assert after.pop("server.pem") != before.pop("server.pem")
    before.pop("server.pem", None)
    assert after == before


def test_a_renewed_certificate_serves_tls(coordinator: Path) -> None:
    import ssl

    renewal.renew(coordinator, _today())
    server = server_context(coordinator / "server.pem", coordinator / "server.key")
    client = client_context(coordinator / "ca.pem")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    at_server = server.wrap_bio(to_server, to_client, server_side=True)
    at_client = client.wrap_bio(to_client, to_server, server_hostname="a.example")
    for _ in range(4):
        for side in (at_client, at_server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    shown = at_client.getpeercert(binary_form=True)
    assert shown is not None
    assert x509.load_der_x509_certificate(shown).serial_number == _read(coordinator / "server.pem").serial_number


def test_a_certificate_never_outlives_its_ca(coordinator: Path) -> None:
    end = _read(coordinator / "ca.pem").not_valid_after_utc
    renewal.renew(coordinator, end - 5 * DAY)
    assert _read(coordinator / "server.pem").not_valid_after_utc == end


def test_the_mode_stays_and_a_second_renewal_replaces_the_old_one(coordinator: Path) -> None:
    (coordinator / "server.pem").chmod(0o640)
    (coordinator / "server.pem.new").write_text("left behind by a crash")
    (coordinator / "server.pem.old.new").write_text("left behind by a crash")
    renewal.renew(coordinator, NOW)
    first = (coordinator / "server.pem").read_bytes()
    renewal.renew(coordinator, NOW + DAY)
    assert (coordinator / "server.pem.old").read_bytes() == first
    assert stat.S_IMODE((coordinator / "server.pem").stat().st_mode) == 0o640
    assert not (coordinator / "server.pem.new").exists()
    assert not (coordinator / "server.pem.old.new").exists()


@pytest.mark.parametrize("failing", [1, 2])
def test_a_crash_between_leaves_a_whole_certificate(
    coordinator: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before = _contents(coordinator)
    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("appliance.renewal.os.replace", replace)
    with pytest.raises(CallerError, match=r"server\.pem: No space left on device; the certificate there is whole"):
        renewal.renew(coordinator, NOW)
    after = _contents(coordinator)
    assert {name: after[name] for name in before} == before
    monkeypatch.undo()
    assert [one.file for one in renewal.renew(coordinator, NOW)] == ["server.pem"]


def _break(directory: Path, how: str) -> str:
    """Break `directory` so that nothing may be renewed; returns what the error says."""
    other = pki.make_ca("another")
    if how == "no CA key":
        (directory / "ca.key").unlink()
        return "cannot read the certificate authority: No such file"
    if how == "wrong CA key":
        (directory / "ca.key").write_bytes(other.key_pem)
        return "is not the key of ca.pem"
    if how == "CA key is rubbish":
        (directory / "ca.key").write_text("rubbish")
        return "is not PEM"
    if how == "wrong key":
        (directory / "server.key").write_bytes(other.key_pem)
        return "is not the key of server.pem"
    if how == "no key":
        (directory / "server.key").unlink()
        return "it is the key of server.pem"
    if how == "rubbish":
        (directory / "zzz.pem").write_text("rubbish")
        return "does not hold certificates in PEM"
    assert how == "not its own"
    (directory / "server.pem").write_bytes(other.certificate_pem)
    return "has issued no certificate"


@pytest.mark.parametrize(
    "how", ["no CA key", "wrong CA key", "CA key is rubbish", "wrong key", "no key", "rubbish", "not its own"]
)
def test_where_something_is_wrong_nothing_changes(coordinator: Path, how: str) -> None:
    said = _break(coordinator, how)
    before = _contents(coordinator)
    with pytest.raises(CallerError, match=said):
        renewal.renew(coordinator, NOW)
    assert _contents(coordinator) == before


def test_an_expired_ca_renews_nothing(coordinator: Path) -> None:
    before = _contents(coordinator)
    with pytest.raises(CallerError, match="itself expired"):
        renewal.renew(coordinator, _read(coordinator / "ca.pem").not_valid_after_utc)
    assert _contents(coordinator) == before


def test_an_empty_directory_and_none(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="no certificate in"):
        renewal.show(tmp_path, NOW)
    with pytest.raises(CallerError, match="cannot read the directory"):
        renewal.show(tmp_path / "none", NOW)


def _keymoot(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["keymoot", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_warns_renews_and_is_content(
    coordinator: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _put_short_lived(coordinator, 10)
    assert _keymoot(monkeypatch, "pki", "show", coordinator) == cli.EXIT_FAILED
    assert f"WARNING: server.pem expires in 9 days: keymoot pki renew {coordinator}" in capsys.readouterr().out
    assert _keymoot(monkeypatch, "pki", "show", coordinator, "--json") == cli.EXIT_FAILED
    assert json.loads(capsys.readouterr().out)["due"] == ["server.pem"]
    assert not _keymoot(monkeypatch, "pki", "renew", coordinator, "--json")
    assert json.loads(capsys.readouterr().out)["renewed"][0]["old"] == "server.pem.old"
    assert not _keymoot(monkeypatch, "pki", "show", coordinator)
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize("days", ["0", "3651", "99999999999"])
def test_the_command_refuses_other_days(
    coordinator: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], days: str
) -> None:
    assert _keymoot(monkeypatch, "pki", "renew", coordinator, "--days", days) == cli.EXIT_CALLER
    assert capsys.readouterr().err == f"keymoot: a certificate is valid for 1 to 3650 days, not {days}\n"


def test_the_command_and_the_authority_agree_on_how_long() -> None:
    assert LEAF_DAYS == pki.LEAF_DAYS
