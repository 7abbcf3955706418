"""SPEC 0.9, 0.10, 3.11: the rounds in which the members of a failed ceremony find out who broke it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from enclave.bodies import BodyRef, RoundNumber, SignedBody
from enclave.protocol.session import RoundMessage
from enclave.wire import Bytes32, Wire
from policies.roster import Index

# Above every protocol's own rounds.
STOP, VIEWS, CLOSING = 101, 102, 103
MAX_PROOF_BYTES = 1_900_000

Refs = Annotated[tuple[BodyRef, ...], msgspec.Meta(max_length=128)]
Proof = Annotated[bytes, msgspec.Meta(max_length=MAX_PROOF_BYTES)]


class OpenedSeed(Wire, frozen=True):
    """SPEC 3.11: the sub-seed of one group of one batch, opened after the batch was destroyed."""

    kind: Annotated[str, msgspec.Meta(pattern=r"^(subset|pair)$(?!\n)")]
    members: Annotated[tuple[Index, ...], msgspec.Meta(min_length=2, max_length=16)]
    seed: Bytes32

    def __repr__(self) -> str:
        return f"OpenedSeed({self.kind} {self.members}, …)"


class Stop(RoundMessage, frozen=True):
    """0.9: the sender has ended the ceremony for good. `step`: the check that failed, `""` where it follows another's
    stop; `round`: the one it was at; `accused`: whom the check names, 0 for nobody. `confirmation`: its own, if it
    has signed one; without it the stop of a batch is its signed abort. `proof`: an encoded `Charge`, or nothing."""

    step: Annotated[str, msgspec.Meta(max_length=8)]
    round: RoundNumber
    accused: Annotated[int, msgspec.Meta(ge=0, le=16)]
    follows: BodyRef | None
    confirmation: SignedBody | None
    refs: Refs
    proof: Proof


class Views(RoundMessage, frozen=True):
    """0.10: references to all broadcast bodies that the sender has, its own among them, in order."""

    refs: Refs
    proof: Proof


class Closing(RoundMessage, frozen=True):
    """3.11: references to all `Views` that the sender has, and its sub-seeds, or none."""

    views: Refs
    seeds: Annotated[tuple[OpenedSeed, ...], msgspec.Meta(max_length=1024)]
    proof: Proof


BLAME_ROUNDS: dict[int, type[RoundMessage]] = {STOP: Stop, VIEWS: Views, CLOSING: Closing}
