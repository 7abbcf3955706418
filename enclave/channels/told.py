"""SPEC 0.7 on a link: a state told by the peer, and who judges the states of peers."""

from __future__ import annotations

import hmac
from typing import Protocol

from enclave.audit import ChainEnd
from enclave.channels.handshake import Link, PeerSession
from enclave.peers import SeenPeer
from enclave.wire import Bytes32, Count, Wire
from policies.transcript import Tag, encode_parts


class Tell(Wire, frozen=True, tag=5):
    """How far the sender's audit chain is on disk. `proof`: an HMAC with the link's key."""

    state_version: Count
    audit_head: Bytes32
    proof: Bytes32


class Judge(Protocol):
    """Who decides whether a peer's state is acceptable (`enclave.peers`)."""

    def seen(self, peer: int) -> SeenPeer | None:
        """What is known of `peer` now."""

    def admit(self, session: PeerSession, before: SeenPeer | None, answered: bool) -> None:
        """Raises `Refused` for a session to refuse, `LinkFault` for one that has ended meanwhile."""

    def on_told(self, peer: int, boot: bytes, before: SeenPeer | None, chain: ChainEnd) -> None:
        """Raises `Refused` for a state that ends the link."""


def proof_of(link: Link, sender: int, chain: ChainEnd) -> bytes:
    """32 bytes that only the two ends of a link can make."""
    stated = encode_parts(Tag.TOLD_STATE, bytes([sender]), chain.version.to_bytes(8, "big"), chain.head)
    return hmac.digest(link.key, stated, "sha256")
