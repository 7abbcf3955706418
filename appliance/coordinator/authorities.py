"""Whose certificates may speak for which signer: an authority of one organisation is none for another's signers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from policies.errors import CallerError, Refused

MAX_FILE_BYTES = 256 * 1024


class Authorities:
    """By a signer's name, the file with the authorities that issue its certificate. Without any, all of the bundle
    `client_ca` may speak for every signer. The files are read at each connection, so a withdrawn one counts at once."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Raises `CallerError` where a file holds no certificate."""
        self._files = dict(files)
        for path in self._files.values():
            _certificates(path)

    def check(self, signer: str, certificate_der: bytes | None) -> None:
        """Raises `Refused` where the certificate was not issued by an authority of `signer`."""
        if not self._files:
            return
        path = self._files.get(signer)
        if path is None:
            raise Refused("certificate", f"signers.authorities names no authority of {signer}")
        try:
            authorities = _certificates(path)
            shown = x509.load_der_x509_certificate(certificate_der or b"")
        except (CallerError, ValueError) as error:
            raise Refused("certificate", f"the authority of {signer} cannot be compared: {error}") from None
        if not any(_issued(authority, shown) for authority in authorities):
            raise Refused("certificate", f"the certificate was not issued by an authority of {signer}")


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificates(file.read(MAX_FILE_BYTES))
    except OSError as error:
        raise CallerError(f"cannot read the authority {path}: {error.strerror}") from None
    except ValueError:
        raise CallerError(f"{path} holds no certificate in PEM: put the operator's ca.pem there") from None


def _issued(authority: x509.Certificate, shown: x509.Certificate) -> bool:
    try:
        shown.verify_directly_issued_by(authority)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True
