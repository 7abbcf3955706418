"""TLS as Keymoot's own processes and clients use it: a pinned CA, nothing of the system's trust store."""

from __future__ import annotations

import pathlib
import ssl

from policies.errors import CallerError


def client_context(
    ca: pathlib.Path,
    certificate: pathlib.Path | None = None,
    key: pathlib.Path | None = None,
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """A context that trusts `ca` alone, checks host names and, with `certificate` and `key`, shows itself.

    Raises `CallerError` where a file is missing or unusable.
    """
    if (certificate is None) != (key is None):
        raise CallerError("mutual TLS needs both a certificate and a key, or neither")
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
        context.minimum_version = minimum
        if certificate is not None and key is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise CallerError(f"TLS files {ca}, {certificate}, {key} cannot be used: {error}") from error
    return context


def server_context(
    certificate: pathlib.Path, key: pathlib.Path, client_ca: pathlib.Path | None = None, *, optional: bool = False
) -> ssl.SSLContext:
    """A TLS 1.3 server; with `client_ca`, one that admits only clients of that bundle, and with `optional` also those
    that show no certificate.

    Raises `CallerError` where a file is missing or unusable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
            context.load_verify_locations(cafile=client_ca)
    except (OSError, ssl.SSLError) as error:
        raise CallerError(f"TLS files {certificate}, {key}, {client_ca} cannot be used: {error}") from error
    return context
