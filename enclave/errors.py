"""The enclave's errors: the roots of `policies.errors` and the protocol's own.

| root | means | who is to blame |
| --- | --- | --- |
| `CallerError` | malformed or impossible call | the caller (signer, coordinator, operator) |
| `LinkFault` | a frame that did not verify, a gap, a repeat | the link: coordinator or network, never a signer |
| `PeerFault` | a *verified* body that breaks the protocol | `culprits` |
| `Refused` | a decision | nobody |
| `Unavailable` | HSM, record or peer away | nobody |
| `Bug` | our own invariant broken | us |
"""

from __future__ import annotations

from policies.errors import Bug, CallerError, KeymootError, Refused, Unavailable

__all__ = [
    "Bug",
    "CallerError",
    "Cloned",
    "KeymootError",
    "LinkFault",
    "Malformed",
    "PeerFault",
    "Refused",
    "RolledBack",
    "Unavailable",
]


class Malformed(CallerError):
    """Bytes that are not one canonical encoding of the expected message, or exceed its bounds."""


class RolledBack(Refused):
    """A peer's state is behind what was seen of it, or has forked (SPEC 0.7)."""

    def __init__(self, reason: str) -> None:
        super().__init__("rolled-back", reason)


class Cloned(Refused):
    """Two enclaves with one identity were alive at the same time (SPEC 0.7)."""

    def __init__(self, reason: str) -> None:
        super().__init__("cloned", reason)


class Unproven(Refused):
    """A charge or a file of evidence does not prove what it says (SPEC 0.11): nobody is convicted by it."""

    def __init__(self, reason: str) -> None:
        super().__init__("evidence", reason)


class LinkFault(KeymootError):
    """Decryption, signature, counter or handshake failed on the link with `peer`: convicts nobody."""

    def __init__(self, peer: int, reason: str) -> None:
        super().__init__(f"link with signer {peer}: {reason}")
        self.peer = peer
        self.reason = reason


class PeerFault(KeymootError):
    """A signer broke the protocol in a body that verified.

    `culprits`: the party indices convicted; empty where the step cannot name one.
    `subset`: for seeds that disagree, the group in which somebody cheated; nobody of it is convicted.
    `step`: the SPEC step whose check failed, such as `"3.4"`.
    """

    def __init__(self, step: str, reason: str, culprits: tuple[int, ...] = (), subset: tuple[int, ...] = ()) -> None:
        named = f" by signer {', '.join(map(str, culprits))}" if culprits else ""
        super().__init__(f"SPEC {step}: {reason}{named}")
        self.step = step
        self.reason = reason
        self.culprits = culprits
        self.subset = subset
