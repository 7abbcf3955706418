"""Certificates of running processes: warned of once a day, taken up when renewed, and never half of a pair."""

from __future__ import annotations

import pathlib
import ssl
from functools import partial

import pytest
import structlog.testing
from cryptography import x509

from appliance import expiry, pki
from appliance.expiry import DAY_S, CertificateWatch, TlsFiles, first_end_s, why_unusable
from appliance.tls import client_context, server_context
from tests.fakes.tls import TlsFiles as Files


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Files:
    return Files.make(tmp_path)


class Days:
    """A clock that stands so many days before the certificate ends, and a monotonic one that goes with it."""

    def __init__(self, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        end_s = first_end_s(path)
        assert end_s is not None
        self._end_s, self.left = end_s, 100.0
        monkeypatch.setattr(expiry.time, "monotonic", lambda: -self.left * DAY_S)

    def wall(self) -> float:
        return self._end_s - self.left * DAY_S


@pytest.mark.parametrize(
    ("left", "event", "days"),
    [(31.0, None, None), (29.5, "certificate-expires-soon", 29), (0.5, "certificate-expires-soon", 0),
     (-0.5, "certificate-expired", -1)],
)  # fmt: skip
def test_what_ends_is_told_once_a_day(
    files: Files, monkeypatch: pytest.MonkeyPatch, left: float, event: str | None, days: int | None
) -> None:
    clock = Days(files.server_certificate, monkeypatch)
    watch = CertificateWatch([files.server_certificate], wall_clock=clock.wall)
    clock.left = left
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            watch.look()
            clock.left -= 0.4 / 100
    if event is None:
        assert logs == []
        return
    assert [(one["event"], one["days_left"]) for one in logs] == [(event, days)]
    assert logs[0]["file"] == str(files.server_certificate)
    assert "keymoot pki renew" in logs[0]["remedy"]
    clock.left -= 1.0
    with structlog.testing.capture_logs() as logs:
        watch.look()
        watch.look()
    assert len(logs) == 1


def shown(context: ssl.SSLContext, ca: pathlib.Path) -> int:
    """The serial number of the certificate that a server with `context` shows."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    client = client_context(ca).wrap_bio(outgoing, incoming, server_hostname="localhost")
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def test_a_renewed_certificate_is_shown_from_the_next_handshake_on(files: Files) -> None:
    make = partial(server_context, files.server_certificate, files.server_key)
    tls = TlsFiles(make, files.server_certificate, files.server_key)
    watch = CertificateWatch([], [tls])
    before = shown(tls.context, files.ca)
    watch.look()
    assert shown(tls.context, files.ca) == before
    ca = pki.load_ca(files.ca, files.directory / "ca.key")
    renewed = pki.issue(ca, "localhost", pki.Purpose.SERVER)
    files.server_certificate.write_bytes(renewed.certificate_pem)
    with structlog.testing.capture_logs() as logs:
        watch.look()
        watch.look()
    # Its key is not there yet: the old pair goes on, whole, and that is told once.
    assert [one["event"] for one in logs] == ["certificate-not-reloaded"]
    assert shown(tls.context, files.ca) == before
    files.server_key.write_bytes(renewed.key_pem)
    with structlog.testing.capture_logs() as logs:
        watch.look()
    assert [one["event"] for one in logs] == ["certificate-reloaded"]
    assert shown(tls.context, files.ca) == x509.load_pem_x509_certificate(renewed.certificate_pem).serial_number


@pytest.mark.parametrize("junk", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_that_holds_no_certificate_says_nothing(tmp_path: pathlib.Path, junk: bytes) -> None:
    path = tmp_path / "x.pem"
    path.write_bytes(junk)
    assert first_end_s(path) is None
    assert why_unusable(path, 0.0) == ""
    assert CertificateWatch([path, tmp_path / "away.pem"]).ends_s() == {}
