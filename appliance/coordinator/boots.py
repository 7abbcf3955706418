"""Two enclaves that announce themselves as one signer by turns: a copy of it runs.

The coordinator only sees that connections replace each other. A restart brings a boot that was not seen before; when
earlier boots come back again and again, at least two of them run, and all that were seen are refused until a new one
comes. The signers' enclaves judge by themselves (SPEC 0.7): this is for the operators to hear of it at once.
"""

from __future__ import annotations

from collections import deque

import structlog

from policies.errors import Refused

KEPT_BOOTS = 16
TURNS = 3
"""So often must earlier boots come back: an announcement that was held up on its way brings one back twice at most."""
REASON = (
    "two enclaves run with the identity of this signer: stop both, find out which is right, and start that one again"
)

log = structlog.get_logger()


class Boots:
    """The boots of one signer that came online, newest last."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: deque[bytes] = deque(maxlen=KEPT_BOOTS)
        self._turns = 0
        self._barred: frozenset[bytes] = frozenset()

    def check(self, boot: bytes) -> None:
        """Raises `Refused` for a boot that has taken turns with another one."""
        if boot in self._barred:
            raise Refused("cloned", REASON)

    def on_online(self, boot: bytes) -> None:
        """This boot came online. Raises `Refused` where that shows that two run."""
        if self._seen and boot == self._seen[-1]:
            return
        if boot in self._seen:
            self._seen.remove(boot)
            self._turns += 1
        else:
            self._turns = 0
        self._seen.append(boot)
        if self._turns >= TURNS:
            self._barred = frozenset(self._seen)
            log.error("signer-cloned", signer=self._name, reason=REASON)
            raise Refused("cloned", REASON)
