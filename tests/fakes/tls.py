"""A certificate authority on disk with a server's and a client's certificate for loopback."""

from __future__ import annotations

import datetime
import pathlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from appliance import pki


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files in `directory`, all of one CA."""

    directory: pathlib.Path

    @classmethod
    def make(cls, directory: pathlib.Path) -> TlsFiles:
        files = cls(directory)
        ca = pki.make_ca("test ca")
        ca.write(files.ca, directory / "ca.key")
        server = pki.issue(ca, "localhost", pki.Purpose.SERVER, addresses=("127.0.0.1",))
        server.write(files.server_certificate, files.server_key)
        pki.issue(ca, "signer-1", pki.Purpose.CLIENT).write(files.client_certificate, files.client_key)
        return files

    @property
    def ca(self) -> pathlib.Path:
        return self.directory / "ca.pem"

    @property
    def server_certificate(self) -> pathlib.Path:
        return self.directory / "server.pem"

    @property
    def server_key(self) -> pathlib.Path:
        return self.directory / "server.key"

    @property
    def client_certificate(self) -> pathlib.Path:
        return self.directory / "client.pem"

    @property
    def client_key(self) -> pathlib.Path:
        return self.directory / "client.key"


def signer_certificate(directory: pathlib.Path, lives: datetime.timedelta) -> bytes:
    """The certificate of the signer in `directory` as it is, by its own authority, but good for so long from now."""
    ca = pki.load_ca(directory / "ca.pem", directory / "ca.key")
    now = datetime.datetime.now(datetime.UTC)
    own = x509.load_pem_x509_certificate((directory / "signer.pem").read_bytes())
    builder = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(ca.certificate.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + lives)
    )
    for extension in own.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
