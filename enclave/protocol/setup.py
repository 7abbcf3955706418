"""SPEC 1: independent seeds for every subset and pair of signers. Rounds as in the specification."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec

from enclave.crypto.prss import pairs, subsets
from enclave.errors import PeerFault, Refused
from enclave.protocol.session import RoundMessage, Session
from enclave.wire import Bytes32, Wire
from policies.roster import MAX_SIGNERS
from policies.transcript import Tag, digest

CONTRIBUTION_BYTES = 32
MAX_GROUPS = 1024

Digests = Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=MAX_GROUPS)]


class Group(Wire, frozen=True):
    """Who shares a seed, and for what: `subset` (t+1 signers), `presign-pair` or `online-pair`."""

    purpose: Annotated[str, msgspec.Meta(max_length=16)]
    members: Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_SIGNERS)]

    def label(self) -> bytes:
        """Unambiguous bytes naming this group."""
        return self.purpose.encode() + b":" + bytes(self.members)


class Seeds(Wire, frozen=True):
    """All seeds that one signer holds of one PRSS epoch, in the order of `groups_of`. Secret.

    `context` is the setup's: two setups of one epoch differ in it. `roster_digest`: whom the seeds are shared with.
    """

    epoch: int
    context: Bytes32
    roster_digest: Bytes32
    groups: Annotated[tuple[Group, ...], msgspec.Meta(max_length=MAX_GROUPS)]
    seeds: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=MAX_GROUPS)]

    def of(self, purpose: str, members: tuple[int, ...]) -> bytes:
        """The 32-byte seed of a group this signer is in. Raises `Refused` for another group."""
        try:
            return self.seeds[self.groups.index(Group(purpose, members))]
        except ValueError:
            raise Refused("prss", f"no seed for {purpose} {members}") from None

    def __repr__(self) -> str:
        return f"Seeds(epoch={self.epoch}, …)"


class Commitments(RoundMessage, frozen=True):
    """1.1: one commitment for each group of the sender."""

    commitments: Digests


class Contributions(RoundMessage, frozen=True):
    """1.2, private: the sender's contributions to the groups it shares with the receiver."""

    private = True
    contributions: Digests

    def __repr__(self) -> str:
        return "Contributions(…)"


class Checks(RoundMessage, frozen=True):
    """1.3: a hash of each seed of the sender."""

    checks: Digests


class Acknowledged(RoundMessage, frozen=True):
    """1.6: sealed and stored, older pools and seeds gone."""


ROUNDS = (Commitments, Contributions, Checks, Acknowledged)


def groups_of(member: int, roster: tuple[int, ...], t: int) -> tuple[Group, ...]:
    """All groups that `member` is in, in the one order every message uses."""
    every = [Group("subset", A) for A in subsets(roster, t)]
    every += [Group(purpose, pair) for purpose in ("presign-pair", "online-pair") for pair in pairs(roster)]
    return tuple(group for group in every if member in group.members)


async def setup(
    session: Session,
    t: int,
    epoch: int,
    roster_digest: bytes,
    random: Callable[[int], bytes],
    install: Callable[[Seeds], Awaitable[None]],
) -> Seeds:
    """Run SPEC 1 and return this member's seeds. `install` seals and stores them and drops older pools."""
    groups = {j: groups_of(j, session.members, t) for j in session.members}
    mine = groups[session.me]

    # SPEC 1.1
    contributions = {group: random(CONTRIBUTION_BYTES) for group in mine}
    session.broadcast(
        Commitments(tuple(_commitment(session.context, session.me, g, c) for g, c in contributions.items()))
    )
    commitments = await session.gather(Commitments)
    for j, message in commitments.items():
        if len(message.commitments) != len(groups[j]):
            raise PeerFault("1.1", "a commitment for each group, no more and no less", (j,))

    # SPEC 1.2
    session.send(
        {j: Contributions(tuple(c for g, c in contributions.items() if j in g.members)) for j in session.peers}
    )
    received = {session.me: contributions}
    for j, private in (await session.gather(Contributions)).items():
        committed = dict(zip(groups[j], commitments[j].commitments, strict=True))
        received[j] = verify_contributions(session.context, j, session.me, private, committed)
    seeds = {g: digest(Tag.SETUP_SEED, session.context, g.label(), *(received[j][g] for j in g.members)) for g in mine}

    # SPEC 1.3
    session.broadcast(Checks(tuple(_check(session.context, g, seed) for g, seed in seeds.items())))
    verify_checks(await session.gather(Checks), groups)

    # SPEC 1.6
    result = Seeds(epoch, session.context, roster_digest, tuple(seeds), tuple(seeds.values()))
    await install(result)
    session.broadcast(Acknowledged())
    await session.gather(Acknowledged)
    return result


def verify_contributions(
    context: bytes, sender: int, receiver: int, message: Contributions, committed: dict[Group, bytes]
) -> dict[Group, bytes]:
    """SPEC 1.2: contributions of `sender` that open its commitments. Raises `PeerFault` naming it."""
    shared = [group for group in committed if receiver in group.members]
    if len(message.contributions) != len(shared):
        raise PeerFault("1.2", "a contribution for each common group, no more and no less", (sender,))
    opened = dict(zip(shared, message.contributions, strict=True))
    for group, contribution in opened.items():
        if not hmac.compare_digest(_commitment(context, sender, group, contribution), committed[group]):
            raise PeerFault("1.2", f"contribution to {group.label()!r} does not open its commitment", (sender,))
    return opened


def verify_checks(checks: dict[int, Checks], groups: dict[int, tuple[Group, ...]]) -> None:
    """SPEC 1.3: all members of a group hold the same seed. Raises `PeerFault` naming the sender or the group."""
    seen: dict[Group, bytes] = {}
    for j, message in checks.items():
        if len(message.checks) != len(groups[j]):
            raise PeerFault("1.3", "a check for each group, no more and no less", (j,))
        for group, value in zip(groups[j], message.checks, strict=True):
            if seen.setdefault(group, value) != value:
                raise PeerFault("1.3", f"members of {group.label()!r} hold different seeds", subset=group.members)


def _commitment(context: bytes, sender: int, group: Group, contribution: bytes) -> bytes:
    return digest(Tag.SETUP_COMMITMENT, context, bytes([sender]), group.label(), contribution)


def _check(context: bytes, group: Group, seed: bytes) -> bytes:
    return digest(Tag.SETUP_CHECK, context, group.label(), seed)
