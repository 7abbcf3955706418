"""Names that the command line is given: checked before anything is written."""

from __future__ import annotations

import re

import msgspec

from policies.clients import CLIENT_ID_PATTERN
from policies.errors import CallerError
from policies.roster import Name


def named(text: str, option: str) -> None:
    """Check a name of a network, signer or coordinator. Raises `CallerError`."""
    try:
        msgspec.convert(text, Name)
    except msgspec.ValidationError:
        raise CallerError(f"{option} {text}: a name is a-z, 0-9 and -, and begins with a letter or digit") from None


def identified(text: str, option: str) -> None:
    """Check the id of a client, reader or operator, as the configuration takes it. Raises `CallerError`."""
    if not re.match(CLIENT_ID_PATTERN, text):
        raise CallerError(
            f"{option} {text}: an id is letters, digits and . _ -, at most 63, and begins with a letter or digit"
        )
