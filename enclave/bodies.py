"""Signed bodies of one ceremony: what a member keeps of them, and how it names one to the others (SPEC 0.3, 3.10).

A body is content and signature; a reference to it is the content's hash and the signature, which covers that hash: two
references of one sender for one round with different hashes convict it without anybody showing a body.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from enclave.wire import MAX_PEER_FRAME_BYTES, Bytes32, Signature64, Wire
from policies.roster import Index
from policies.transcript import Tag, digest

BODY_VERSION = 1
BROADCAST = 0
RELEASED_BYTES = 128

RoundNumber = Annotated[int, msgspec.Meta(ge=0, le=255)]
Receiver = Annotated[int, msgspec.Meta(ge=0, le=16)]
Place = tuple[int, int, int]


class BodyRef(Wire, frozen=True):
    """A signed body by its hash. `receiver`: `BROADCAST`, or the one it was for."""

    round: RoundNumber
    sender: Index
    receiver: Receiver
    content_hash: Bytes32
    signature: Signature64

    @property
    def place(self) -> Place:
        """For one place a sender signs one body."""
        return (self.round, self.sender, self.receiver)


class SignedBody(Wire, frozen=True):
    """A body as its sender signed it: 32 bytes of view, then the round's message."""

    round: RoundNumber
    sender: Index
    receiver: Receiver
    content: Annotated[bytes, msgspec.Meta(max_length=MAX_PEER_FRAME_BYTES)]
    signature: Signature64

    def __repr__(self) -> str:
        # A private body holds secrets.
        return f"SignedBody(round={self.round}, sender={self.sender}, receiver={self.receiver}, …)"

    @property
    def ref(self) -> BodyRef:
        """The reference to it."""
        return BodyRef(self.round, self.sender, self.receiver, digest(Tag.CONTENT, self.content), self.signature)


def body_digest(context: bytes, ref: BodyRef) -> bytes:
    """SPEC 0.3: the 32 bytes that a sender signs of a body."""
    return digest(
        Tag.SIGNED_BODY,
        bytes([BODY_VERSION]),
        context,
        bytes([ref.round]),
        bytes([ref.sender]),
        b"" if ref.receiver == BROADCAST else bytes([ref.receiver]),
        ref.content_hash,
    )


class BodyLog:
    """The first body for each place, and for each sender the first one that differs from it: no more is kept.

    `release` drops the contents and keeps the references, some kilobytes.
    """

    def __init__(self, max_bodies_each: int) -> None:
        self._max_bodies_each = max_bodies_each
        self._refs: dict[Place, BodyRef] = {}
        self._bodies: dict[Place, SignedBody] = {}
        self._heard: dict[Place, BodyRef] = {}
        self._counts: dict[int, int] = {}
        self.conflicts: dict[int, tuple[BodyRef, BodyRef]] = {}

    def add(self, ref: BodyRef, content: bytes) -> None:
        """Keep a verified (or own) body. Beyond the bound of its sender nothing is kept."""
        self._compare(ref)
        count = self._counts.get(ref.sender, 0)
        if ref.place not in self._refs and count < self._max_bodies_each:
            self._counts[ref.sender] = count + 1
            self._refs[ref.place] = ref
            self._bodies[ref.place] = SignedBody(ref.round, ref.sender, ref.receiver, content, ref.signature)

    def hear(self, ref: BodyRef) -> None:
        """Another member holds this body; its signature is verified, and its place is one of the ceremony."""
        self._compare(ref)
        self._heard.setdefault(ref.place, ref)

    def body(self, round_number: int, sender: int, receiver: int = BROADCAST) -> SignedBody | None:
        """The body for that place, if it is here."""
        return self._bodies.get((round_number, sender, receiver))

    def round(self, number: int, members: tuple[int, ...]) -> tuple[SignedBody, ...]:
        """The broadcast bodies of a round, of all members; none unless all are here."""
        found = tuple(body for j in members if (body := self.body(number, j)) is not None)
        return found if len(found) == len(members) else ()

    def bodies(self) -> tuple[SignedBody, ...]:
        """All bodies, in the order in which they came."""
        return tuple(self._bodies.values())

    def ref(self, round_number: int, sender: int) -> BodyRef | None:
        """The reference to a broadcast body that is or was here."""
        return self._refs.get((round_number, sender, BROADCAST))

    def known(self, round_number: int, sender: int) -> BodyRef | None:
        """The reference to a broadcast body that is or was here, or of which another member told."""
        place = (round_number, sender, BROADCAST)
        return self._refs.get(place) or self._heard.get(place)

    def broadcast_refs(self) -> tuple[BodyRef, ...]:
        """References to all broadcast bodies, by round and sender."""
        return tuple(ref for _, ref in sorted(self._refs.items()) if ref.receiver == BROADCAST)

    def release(self) -> None:
        """Drop all contents but the smallest: the ceremony succeeded."""
        small = {place: body for place, body in self._bodies.items() if len(body.content) <= RELEASED_BYTES}
        self._bodies = {place: body for place, body in small.items() if body.receiver == BROADCAST}

    def _compare(self, ref: BodyRef) -> None:
        for known in (self._refs.get(ref.place), self._heard.get(ref.place)):
            if known is not None and known.content_hash != ref.content_hash:
                self.conflicts.setdefault(ref.sender, (known, ref))
