"""What a client shows to read the API: a token, or a client certificate.

A token is 256 random bits, so its SHA-256 is all that a coordinator needs to keep: from that nobody finds the token.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pathlib
import re
from dataclasses import dataclass

from appliance.private_files import read_private
from policies.errors import CallerError

TOKEN_PATTERN = re.compile(r"kmt_[A-Za-z0-9_-]{43}")
TOKEN_BYTES = 32
MAX_FILE_BYTES = 1024


@dataclass(frozen=True, repr=False)
class Credential:
    """A token, or the files of a client certificate and its key, or both. Never shows itself."""

    token: str | None = None
    certificate: pathlib.Path | None = None
    key: pathlib.Path | None = None

    def __repr__(self) -> str:
        return "<Credential>"

    def headers(self) -> dict[str, str]:
        """The header that shows the token, where there is one."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}


def new_token() -> str:
    """A fresh token, from the operating system's generator."""
    return "kmt_" + base64.urlsafe_b64encode(os.urandom(TOKEN_BYTES)).rstrip(b"=").decode()


def token_sha256(token: str) -> str:
    """What a coordinator's configuration says of a token: hex of SHA-256 over its text."""
    return hashlib.sha256(token.encode()).hexdigest()


def save_token(token: str, path: pathlib.Path) -> None:
    """Write a token to a new file of mode 0600. Raises `CallerError` if it exists or cannot be made."""
    from appliance.pki import SECRET_MODE, write_new

    write_new(path, token.encode() + b"\n", SECRET_MODE)


def load_token(path: pathlib.Path) -> str:
    """Read a token that its owner alone may read.

    Raises `CallerError` where the file is away, open to others (any bit of 077), or holds something else.
    """
    text = read_private(path, "token file", MAX_FILE_BYTES).decode("ascii", "replace").strip()
    if not TOKEN_PATTERN.fullmatch(text):
        raise CallerError(f"token file {path} holds no token: make one with `keymoot coordinator token`")
    return text
