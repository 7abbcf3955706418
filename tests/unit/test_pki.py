"""The small CA: its certificates work for exactly what they are for, over real TLS."""

from __future__ import annotations

import errno
import ssl
import stat
from pathlib import Path

import pytest

from appliance import pki
from appliance.tls import client_context, server_context
from policies.errors import CallerError
from tests.fakes.disks import small_disk


def _files(directory: Path, name: str, issued: pki.Issued) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    issued.write(certificate, key)
    return certificate, key


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    """A TLS handshake in memory and one message from the server. Raises `ssl.SSLError` where one side refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    at_server = server.wrap_bio(to_server, to_client, server_side=True)
    at_client = client.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(4):
        for side in (at_client, at_server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    at_server.write(b"hello")
    assert at_client.read() == b"hello"


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    made = pki.make_ca("a test")
    made.write(tmp_path / "ca.pem", tmp_path / "ca.key")
    return tmp_path / "ca.pem"


def _issue(ca: Path, name: str, purpose: pki.Purpose, **sans: tuple[str, ...]) -> tuple[Path, Path]:
    authority = pki.load_ca(ca, ca.with_suffix(".key"))
    return _files(ca.parent, name, pki.issue(authority, name, purpose, **sans))


def test_mutual_tls_with_certificates_of_the_ca(ca: Path) -> None:
    server = server_context(*_issue(ca, "s", pki.Purpose.SERVER, addresses=("127.0.0.1",)), ca)
    client = client_context(ca, *_issue(ca, "c", pki.Purpose.CLIENT))
    _handshake(server, client, "127.0.0.1")


def test_a_server_certificate_is_good_for_its_names_alone(ca: Path) -> None:
    server = server_context(*_issue(ca, "s", pki.Purpose.SERVER, names=("one.example",)))
    _handshake(server, client_context(ca), "one.example")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"two\.example"):
        _handshake(server, client_context(ca), "two.example")


def test_a_server_certificate_is_no_client_certificate(ca: Path) -> None:
    server = server_context(*_issue(ca, "s", pki.Purpose.SERVER, addresses=("127.0.0.1",)), ca)
    client = client_context(ca, *_issue(ca, "c", pki.Purpose.SERVER))
    with pytest.raises(ssl.SSLError, match=r"(?i)unsuitable certificate purpose|unsupported certificate"):
        _handshake(server, client, "127.0.0.1")


def test_a_certificate_of_another_ca_is_refused(ca: Path, tmp_path: Path) -> None:
    server = server_context(*_issue(ca, "s", pki.Purpose.SERVER, addresses=("127.0.0.1",)), ca)
    foreign = pki.issue(pki.make_ca("a test"), "c", pki.Purpose.CLIENT)
    client = client_context(ca, *_files(tmp_path, "foreign", foreign))
    with pytest.raises(ssl.SSLError, match=r"(?i)verify failed|unknown.ca"):
        _handshake(server, client, "127.0.0.1")


def test_keys_are_their_owners_alone_and_never_shown(tmp_path: Path) -> None:
    made = pki.make_ca("a test")
    made.write(tmp_path / "new" / "ca.pem", tmp_path / "new" / "ca.key")
    assert stat.S_IMODE((tmp_path / "new" / "ca.key").stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(made)
    with pytest.raises(CallerError, match="nothing is overwritten"):
        made.write(tmp_path / "new" / "ca.pem", tmp_path / "new" / "ca.key")


def test_an_address_that_is_none_is_the_callers_mistake(ca: Path) -> None:
    with pytest.raises(CallerError, match="not an IP address"):
        _issue(ca, "s", pki.Purpose.SERVER, addresses=("localhost",))


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 512) as disk:
        (disk.path / "full").mkdir()
        disk.fill()
        for attempt in range(2):
            with pytest.raises(CallerError, match=r"cannot write .*roster\.yaml: No space left"):
                pki.write_new(disk.path / "full" / "roster.yaml", b"x" * 100_000)
            assert list((disk.path / "full").iterdir()) == [], attempt
        disk.free()
        pki.write_new(disk.path / "full" / "roster.yaml", b"x" * 100_000, pki.SECRET_MODE)
        (made,) = (disk.path / "full").iterdir()
        assert (made.stat().st_size, stat.S_IMODE(made.stat().st_mode), made.stat().st_nlink) == (100_000, 0o600, 1)
        with pytest.raises(CallerError, match="nothing is overwritten"):
            pki.write_new(made, b"other")


def test_a_file_in_the_place_of_another_keeps_its_owner_and_mode(tmp_path: Path) -> None:
    there = tmp_path / "gate-secrets.sealed"
    pki.replace(there, b"first", 0o640)
    assert stat.S_IMODE(there.stat().st_mode) == 0o640
    there.chmod(0o600)
    pki.replace(there, b"second", 0o640)
    assert (there.read_bytes(), stat.S_IMODE(there.stat().st_mode)) == (b"second", 0o600)
    assert list(tmp_path.iterdir()) == [there]


def test_a_file_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    pki.write_new(tmp_path / "a", b"whole", pki.SECRET_MODE)
    with pytest.raises(CallerError, match="nothing is overwritten"):
        pki.write_new(tmp_path / "a", b"other")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"whole")]
