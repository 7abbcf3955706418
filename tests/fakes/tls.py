"""A certificate authority on disk with a server's and a client's certificate for loopback."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

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
