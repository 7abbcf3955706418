"""Why an HTTP exchange failed, in words for an operator."""

from __future__ import annotations

import os
import ssl

import aiohttp

MAX_CHARS = 300


def describe(error: BaseException) -> str:
    """One phrase: `Connection refused`, or what is wrong with the certificate."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            inner = error.certificate_error
            return f"its certificate is not trusted: {getattr(inner, 'verify_message', None) or inner}"[:MAX_CHARS]
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message or error}"[:MAX_CHARS]
        case aiohttp.ClientConnectorDNSError():
            return f"there is no host {error.host}"[:MAX_CHARS]
        case aiohttp.ClientConnectorError() if error.os_error.errno and error.os_error.errno > 0:
            return os.strerror(error.os_error.errno)
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without an answer"
        case TimeoutError():
            return "it did not answer in time"
        case ConnectionError() if error.errno:
            return os.strerror(error.errno)
        case _:
            return f"{type(error).__name__}: {error}"[:MAX_CHARS]
