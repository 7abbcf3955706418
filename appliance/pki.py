"""A small certificate authority for mutual TLS between signers, coordinators, clients and gates.

P-256 throughout. Certificates admit a process to a socket; they are never what signers trust each other by
(that is the roster). An operator with a PKI of its own uses that instead.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import ipaddress
import os
import stat
import tempfile
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from policies.errors import CallerError

CA_DAYS = 3650
LEAF_DAYS = 825
CLOCK_SKEW = datetime.timedelta(minutes=10)
SECRET_MODE = 0o600
PUBLIC_MODE = 0o644


class Purpose(Enum):
    """What a certificate may be used for. A signer is a client; its coordinator, API and gate are servers."""

    SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, both PEM."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)

    def write(self, certificate: Path, key: Path) -> None:
        """Write both, the key with mode 0600. Raises `CallerError` where one of the files exists."""
        write_new(key, self.key_pem, SECRET_MODE)
        write_new(certificate, self.certificate_pem, PUBLIC_MODE)


@dataclass(frozen=True)
class Authority(Issued):
    """A certificate authority."""

    @property
    def certificate(self) -> x509.Certificate:
        """The authority's own certificate."""
        return x509.load_pem_x509_certificate(self.certificate_pem)

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The authority's private key."""
        loaded = serialization.load_pem_private_key(self.key_pem, password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise CallerError("the authority's key is not an elliptic-curve key: make a new one with `keymoot init`")
        return loaded


def make_ca(name: str, *, days: int = CA_DAYS) -> Authority:
    """A new self-signed authority with common name `name` that can issue leaf certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    certificate = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _key_pem(key))


def load_ca(certificate: Path, key: Path) -> Authority:
    """The authority stored in two PEM files. Raises `CallerError` where one cannot be read."""
    try:
        return Authority(certificate.read_bytes(), key.read_bytes())
    except OSError as error:
        raise CallerError(f"cannot read the certificate authority: {error.strerror}: {error.filename}") from None


def issue(
    ca: Authority,
    common_name: str,
    purpose: Purpose,
    *,
    names: tuple[str, ...] = (),
    addresses: tuple[str, ...] = (),
    days: int = LEAF_DAYS,
) -> Issued:
    """A certificate by `ca` for one purpose. `names` are DNS names, `addresses` IP addresses it is valid for.

    Raises `CallerError` where an address is none.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names or (common_name,)]
    try:
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    except ValueError as error:
        raise CallerError(f"not an IP address for a certificate: {error}") from None
    issuer = ca.certificate
    certificate = (
        _builder(_name(common_name), issuer.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose.value]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
        .sign(ca.key, hashes.SHA256())
    )
    return Issued(_pem(certificate), _key_pem(key))


def write_new(path: Path, data: bytes, mode: int = PUBLIC_MODE) -> None:
    """Create `path` with `mode` and `data`, whole and on disk, or not at all. Raises `CallerError` where it exists or
    cannot be made."""
    exists = CallerError(f"{path} exists: nothing is overwritten; remove it first or choose another place")
    if path.exists():
        raise exists
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise CallerError(f"cannot make the directory {path.parent}: {why}") from None
    try:
        # mkstemp's is its owner's alone, until everything is in it.
        descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        _put(beside, path)
    except FileExistsError:
        raise exists from None
    except OSError as error:
        raise CallerError(f"cannot write {path}: {error.strerror}") from None
    finally:
        if beside is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)


def _put(beside: str, path: Path) -> None:
    """Give a whole file its name. Raises `FileExistsError`."""
    try:
        os.link(beside, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP):
            raise
        # No hard links there, as on a memory stick: the name is taken first.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SECRET_MODE))
        os.replace(beside, path)


def replace(path: Path, data: bytes, mode: int = PUBLIC_MODE) -> None:
    """Put a file in the place of `path`, whole or not at all: with the owner and mode of the one that is there, and
    `mode` where there is none. Raises `CallerError`."""
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)
        write_new(new, data, mode)
        with contextlib.suppress(FileNotFoundError):
            old = path.stat()
            os.chown(new, old.st_uid, old.st_gid)
            new.chmod(stat.S_IMODE(old.st_mode))
        os.replace(new, path)
    except OSError as error:
        raise CallerError(f"cannot write {path}: {error.strerror}") from None


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
