"""Whether something answers: a TLS handshake with a server, a document from a Unix socket."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import http.client
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

MAX_DOCUMENT_BYTES = 256 * 1024
TIMEOUT_S = 6.0


def tls_failure(url: str, context: ssl.SSLContext, timeout_s: float = TIMEOUT_S) -> str:
    """Why no TLS connection to the host of an https `url` comes about; empty where one does."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        with (
            socket.create_connection((host, parts.port or 443), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted: {error.verify_message}"
    except ssl.SSLError as error:
        return f"no TLS with it: {error.reason or error}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)


def server_time(url: str, context: ssl.SSLContext, timeout_s: float = TIMEOUT_S) -> datetime.datetime | None:
    """The `Date` that the host of an https `url` answers with, to the second; None where it tells none."""
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, context=context, timeout=timeout_s)
    try:
        connection.request("HEAD", "/")
        return email.utils.parsedate_to_datetime(connection.getresponse().headers["Date"])
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        return None
    finally:
        connection.close()


def read_socket(path: Path, timeout_s: float = TIMEOUT_S, say: bytes = b"") -> bytes:
    """All that the server on the Unix socket `path` answers to `say`, at most 256 KiB. Raises `OSError` where nobody is
    there."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        connection.sendall(say)
        connection.shutdown(socket.SHUT_WR)
        data = b""
        while len(data) < MAX_DOCUMENT_BYTES and (piece := connection.recv(64 * 1024)):
            data += piece
    return data
