"""Certificates of a process's directory: when they expire, and renewing those of the operator's own CA.

A renewed certificate keeps the key, names and purpose of the old one, so that one rename puts it in place: whatever
happens meanwhile, the file beside the key is a whole certificate of that key. The old one stays as `NAME.pem.old`.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from appliance import pki
from policies.errors import CallerError

WARN_BELOW_DAYS = 30
MAX_FILE_BYTES = 1024 * 1024  # a bundle of CAs
_SECONDS_A_DAY = 86_400


class Shown(msgspec.Struct, frozen=True):
    """One certificate of a directory. `days_left` is rounded down, so negative once it has expired.

    `role`: `leaf` or `authority`. `renewable`: `keymoot pki renew` can renew it; others are renewed by their issuers.
    """

    file: str
    subject: str
    role: str
    expires: str
    days_left: int
    renewable: bool

    @property
    def is_due(self) -> bool:
        """Whether an operator must do something about it now."""
        return self.days_left < WARN_BELOW_DAYS

    @property
    def when(self) -> str:
        """When it ends, in words."""
        return "has expired" if self.days_left < 0 else f"expires in {self.days_left} days"

    def remedy(self, directory: Path) -> str:
        """What its operator does about it, in a sentence."""
        if self.renewable:
            return f"keymoot pki renew {directory}; running processes take it up by themselves."
        if self.role == "leaf":
            return "Have who issued it issue another."
        if self.file == "ca.pem":
            return "Make a new directory with `keymoot init`, send its ca.pem to the others."
        return "Ask its operator for the new ca.pem."


class Renewed(msgspec.Struct, frozen=True):
    """A certificate that was renewed: its file, where the old one is, when the new one expires."""

    file: str
    old: str
    expires: str
    days_left: int


def show(directory: Path, now: datetime.datetime) -> list[Shown]:
    """Every certificate in the `*.pem` files of `directory`, soonest to expire first.

    Raises `CallerError` where there is none, or where a file cannot be read.
    """
    own = _own_ca(directory)
    shown = []
    for path in _pem_files(directory):
        for certificate in _certificates(path):
            leaf = not _is_authority(certificate)
            shown.append(
                Shown(
                    file=path.name,
                    subject=_printable(certificate.subject),
                    role="leaf" if leaf else "authority",
                    expires=_iso(certificate.not_valid_after_utc),
                    days_left=_days_between(now, certificate.not_valid_after_utc),
                    renewable=leaf and own is not None and _issued_by(certificate, own),
                )
            )
    if not shown:
        raise CallerError(f"no certificate in {directory}: name a directory made by `keymoot init`")
    return sorted(shown, key=lambda one: (one.days_left, one.file))


def renew(directory: Path, now: datetime.datetime, *, days: int = pki.LEAF_DAYS) -> list[Renewed]:
    """Renew every leaf certificate in `directory` that its `ca.pem` issued. All are made before the first is placed.

    Raises `CallerError` without such a certificate, without the CA's key, where a key is not its certificate's, or
    where the CA has expired; nothing is changed then.
    """
    if not 1 <= days <= pki.CA_DAYS:
        raise CallerError(f"a certificate is valid for 1 to {pki.CA_DAYS} days, not {days}")
    ca = pki.load_ca(directory / "ca.pem", directory / "ca.key")
    authority = _authority(ca, directory)
    if authority.not_valid_after_utc <= now:
        raise CallerError(
            f"{directory / 'ca.pem'} itself expired on {_iso(authority.not_valid_after_utc)}: make another with "
            "`keymoot init` in a new directory, and give its ca.pem to the other side"
        )
    made = []
    for path in _pem_files(directory):
        certificates = _certificates(path)
        if len(certificates) == 1 and not _is_authority(certificates[0]) and _issued_by(certificates[0], authority):
            _check_key(path, certificates[0])
            made.append((path, reissue(ca, certificates[0], now, days=days)))
    if not made:
        raise CallerError(f"{directory / 'ca.pem'} has issued no certificate in {directory}: there is nothing to renew")
    return [_place(path, certificate, now) for path, certificate in made]


def reissue(ca: pki.Authority, old: x509.Certificate, now: datetime.datetime, *, days: int) -> x509.Certificate:
    """A certificate by `ca` for the subject, key and extensions of `old`; valid `days`, but no longer than the CA."""
    end = min(now + datetime.timedelta(days=days), ca.certificate.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(ca.certificate.subject)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - pki.CLOCK_SKEW)
        .not_valid_after(end)
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(ca.key, hashes.SHA256())


def _place(path: Path, certificate: x509.Certificate, now: datetime.datetime) -> Renewed:
    """Put `certificate` at `path` by one rename, and what was there at `path.old`. Owner and mode stay."""
    new, old, old_new = (path.with_name(path.name + end) for end in (".new", ".old", ".old.new"))
    try:
        before = path.stat()
        for leftover in (new, old_new):
            with suppress(FileNotFoundError):
                leftover.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(certificate.public_bytes(serialization.Encoding.PEM))
            file.flush()
            if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), before.st_mode & 0o777)
            os.fsync(file.fileno())
        os.link(path, old_new)
        os.replace(old_new, old)
        os.replace(new, path)
        _sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise CallerError(
            f"cannot renew {path}: {error.strerror}; the certificate there is whole and its key unchanged"
        ) from None
    expires = certificate.not_valid_after_utc
    return Renewed(path.name, old.name, _iso(expires), _days_between(now, expires))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pem_files(directory: Path) -> Iterator[Path]:
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        raise CallerError(f"cannot read the directory {directory}: {error.strerror}") from None
    return (directory / name for name in names if name.endswith(".pem"))


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CallerError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise CallerError(f"{path} exceeds {MAX_FILE_BYTES} bytes: that is no file of certificates")
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise CallerError(f"{path} does not hold certificates in PEM: take it out, or put its .old back") from None


def _own_ca(directory: Path) -> x509.Certificate | None:
    """The authority of the directory's own CA, or None where it keeps no CA with a key."""
    if not ((directory / "ca.pem").is_file() and (directory / "ca.key").is_file()):
        return None
    return _certificates(directory / "ca.pem")[0]


def _authority(ca: pki.Authority, directory: Path) -> x509.Certificate:
    """The CA's certificate, once its key is known to be the right one."""
    try:
        certificate, key = ca.certificate, ca.key
    except (UnsupportedAlgorithm, ValueError, TypeError):
        raise CallerError(f"{directory / 'ca.pem'} or ca.key is not PEM: restore them from a copy") from None
    if key.public_key() != certificate.public_key():
        raise CallerError(f"{directory / 'ca.key'} is not the key of ca.pem: restore the right one")
    return certificate


def _check_key(path: Path, certificate: x509.Certificate) -> None:
    key = path.with_suffix(".key")
    try:
        loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise CallerError(f"cannot read {key}: {error.strerror}; it is the key of {path.name}") from None
    except (UnsupportedAlgorithm, ValueError, TypeError):
        raise CallerError(f"{key} is not a private key in PEM: restore it from a copy") from None
    if loaded.public_key() != certificate.public_key():
        raise CallerError(f"{key} is not the key of {path.name}: restore the right one")


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _days_between(now: datetime.datetime, then: datetime.datetime) -> int:
    return int((then - now).total_seconds() // _SECONDS_A_DAY)


def _iso(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _printable(name: x509.Name) -> str:
    return "".join(c if c.isprintable() else "?" for c in name.rfc4514_string())
