"""Why a connection of the signer ends. Both are repaired by reconnecting; anything else ends the process."""

from __future__ import annotations

from policies.errors import Unavailable


class LinkDown(Unavailable):
    """The other side is away, refused the handshake, or closed."""


class LinkOverflow(Unavailable):
    """More was waiting on a connection than its queue may hold."""
