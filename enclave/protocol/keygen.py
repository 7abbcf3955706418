"""SPEC 2: distributed key generation, many keys in one ceremony. Rounds as in the specification."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from enclave.crypto import polynomials, schnorr
from enclave.crypto.curve import SCALAR_BYTES, Curve, InvalidPoint
from enclave.errors import Bug, PeerFault
from enclave.protocol.session import RoundMessage, Session
from enclave.wire import (
    MAX_KEYS_PER_CEREMONY,
    Acknowledgement,
    Bytes32,
    Point33,
    SignedAcknowledgement,
    Wire,
    encode,
)
from policies.transcript import Tag, digest

NONCE_BYTES = 32

Proof = Annotated[bytes, msgspec.Meta(min_length=schnorr.PROOF_BYTES, max_length=schnorr.PROOF_BYTES)]


class KeyOpening(Wire, frozen=True):
    """2.1 for one key: the Feldman vector `C_i` (t+1 points), proof of knowledge of `f_i(0)`, chain-code part."""

    commitments: Annotated[tuple[Point33, ...], msgspec.Meta(max_length=16)]
    proof: Proof
    chain_code_part: Bytes32


class Commitment(RoundMessage, frozen=True):
    """2.1: `H(context, i, opening)`."""

    commitment: Bytes32


class Opening(RoundMessage, frozen=True):
    """2.2: what was committed to, one entry a key."""

    nonce: Bytes32
    keys: Annotated[tuple[KeyOpening, ...], msgspec.Meta(max_length=MAX_KEYS_PER_CEREMONY)]


class Shares(RoundMessage, frozen=True):
    """2.2, private: `f_i(j)` for every key, 32 bytes big-endian."""

    private = True
    shares: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=MAX_KEYS_PER_CEREMONY)]

    def __repr__(self) -> str:
        return "Shares(…)"


class Agreement(RoundMessage, frozen=True):
    """2.4: digest of all commitments and openings."""

    digest: Bytes32


class Acknowledged(RoundMessage, frozen=True):
    """2.6: the sender's signed acknowledgement of every key."""

    acknowledgements: Annotated[tuple[SignedAcknowledgement, ...], msgspec.Meta(max_length=MAX_KEYS_PER_CEREMONY)]


ROUNDS = (Commitment, Opening, Shares, Agreement, Acknowledged)


@dataclass(frozen=True)
class KeyPlan:
    """What all members agreed on beforehand (it is in the context): one label a key."""

    network: str
    roster_digest: bytes
    t: int
    key_epoch: int
    labels: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class NewKey:
    """One generated key: this member's share `x_j` and its unsigned acknowledgement. Secret."""

    share: int
    acknowledgement: Acknowledgement


Certificate = tuple[SignedAcknowledgement, ...]


async def keygen(
    session: Session,
    curve: Curve,
    plan: KeyPlan,
    random: Callable[[int], bytes],
    store_pending: Callable[[Sequence[NewKey]], Awaitable[tuple[SignedAcknowledgement, ...]]],
    verify_acknowledgement: Callable[[SignedAcknowledgement], bool],
) -> tuple[Certificate, ...]:
    """Run SPEC 2; returns each key's certificate, in the order of `plan.labels`.

    `store_pending` seals and stores the shares as pending and then signs the acknowledgements; once it was called,
    the shares stay whatever happens here.
    """
    # SPEC 2.1
    polynomials_mine = [[schnorr.random_scalar(curve, random) for _ in range(plan.t + 1)] for _ in plan.labels]
    opening = Opening(
        random(NONCE_BYTES),
        tuple(_open_key(session, curve, f, number, random) for number, f in enumerate(polynomials_mine)),
    )
    session.broadcast(Commitment(_commitment(session.context, session.me, opening)))
    commitments = await session.gather(Commitment)

    # SPEC 2.2
    session.broadcast(opening)
    session.send({j: Shares(_evaluate_all(curve, polynomials_mine, j)) for j in session.peers})
    openings = await session.gather(Opening)
    for j, message in openings.items():
        verify_opening(session.context, curve, plan, j, message, commitments[j].commitment)
    shares = {session.me: Shares(_evaluate_all(curve, polynomials_mine, session.me))}
    shares |= await session.gather(Shares)
    for j in session.peers:
        verify_shares(curve, session.me, j, shares[j], openings[j])

    # SPEC 2.4
    agreement = compute_agreement(session.context, commitments, openings)
    session.broadcast(Agreement(agreement))
    if any(theirs.digest != agreement for theirs in (await session.gather(Agreement)).values()):
        raise PeerFault("2.4", "members saw different commitments or openings")

    # SPEC 2.5, 2.6
    keys = [compute_key(session, curve, plan, number, openings, shares) for number in range(len(plan.labels))]
    session.broadcast(Acknowledged(await store_pending(keys)))
    acknowledged = await session.gather(Acknowledged)
    return verify_certificates(session, keys, acknowledged, verify_acknowledgement)


def verify_opening(
    context: bytes, curve: Curve, plan: KeyPlan, sender: int, opening: Opening, commitment: bytes
) -> None:
    """SPEC 2.3 for the public part. Raises `PeerFault` naming the sender."""
    if not hmac.compare_digest(_commitment(context, sender, opening), commitment):
        raise PeerFault("2.3", "the opening does not match its commitment", (sender,))
    verify_opening_alone(context, curve, plan.t, len(plan.labels), sender, opening)


def verify_opening_alone(context: bytes, curve: Curve, t: int, count: int, sender: int, opening: Opening) -> None:
    """SPEC 2.3 for what an opening shows by itself. Raises `PeerFault` naming the sender."""
    if len(opening.keys) != count:
        raise PeerFault("2.3", "an opening for each key, no more and no less", (sender,))
    for number, key in enumerate(opening.keys):
        # A longer vector would raise the threshold of the key.
        if len(key.commitments) != t + 1:
            raise PeerFault("2.3", f"{len(key.commitments)} commitments where t + 1 = {t + 1}", (sender,))
        try:
            for point in key.commitments:
                curve.check_point(point)
        except InvalidPoint as error:
            raise PeerFault("2.3", str(error), (sender,)) from None
        if not schnorr.verify(curve, key.commitments[0], key.proof, _proof_context(context, sender, number)):
            raise PeerFault("2.3", "the proof of knowledge does not verify", (sender,))


def verify_shares(curve: Curve, me: int, sender: int, message: Shares, opening: Opening) -> None:
    """SPEC 2.3 for the private part. Raises `PeerFault` naming the sender."""
    if len(message.shares) != len(opening.keys):
        raise PeerFault("2.3", "a share for each key, no more and no less", (sender,))
    for share, key in zip(message.shares, opening.keys, strict=True):
        value = int.from_bytes(share, "big")
        if not 0 < value < curve.q:
            raise PeerFault("2.3", "a share outside 1..q-1", (sender,))
        try:
            expected = evaluate_in_exponent(curve, key.commitments, me)
        except InvalidPoint:
            raise PeerFault("2.3", "the commitments give the identity as public share", (sender,)) from None
        if curve.generate(value) != expected:
            raise PeerFault("2.3", "the share does not match the commitments", (sender,))


def compute_key(
    session: Session,
    curve: Curve,
    plan: KeyPlan,
    number: int,
    openings: dict[int, Opening],
    shares: dict[int, Shares],
) -> NewKey:
    """SPEC 2.5: share, public shares, public key, chain code and id of key `number`."""
    acknowledgement = compute_acknowledgement(
        session.context, session.members, session.me, curve, plan, number, openings
    )
    share = sum(int.from_bytes(shares[j].shares[number], "big") for j in session.members) % curve.q
    if curve.generate(share) != acknowledgement.public_shares[session.members.index(session.me)]:
        raise Bug("own share does not match the verified commitments")
    return NewKey(share, acknowledgement)


def compute_agreement(context: bytes, commitments: Mapping[int, Commitment], openings: Mapping[int, Opening]) -> bytes:
    """SPEC 2.4: the digest of all commitments and openings, by index."""
    return digest(
        Tag.KEYGEN_AGREEMENT,
        context,
        *(commitments[j].commitment for j in sorted(commitments)),
        *(encode(openings[j]) for j in sorted(openings)),
    )


def compute_acknowledgement(
    context: bytes,
    members: tuple[int, ...],
    index: int,
    curve: Curve,
    plan: KeyPlan,
    number: int,
    openings: Mapping[int, Opening],
) -> Acknowledgement:
    """SPEC 2.5: what member `index` acknowledges of key `number`. A function of public values alone."""
    keys = [openings[j].keys[number] for j in members]
    try:
        totals = [curve.add([key.commitments[k] for key in keys]) for k in range(plan.t + 1)]
        public_shares = tuple(evaluate_in_exponent(curve, totals, j) for j in members)
    except InvalidPoint:
        raise PeerFault("2.5", "the public key or a public share is the identity") from None
    return Acknowledgement(
        network=plan.network,
        roster_digest=plan.roster_digest,
        key_id="key_" + digest(Tag.KEY_ID, context, number.to_bytes(4, "big")).hex()[:32],
        label=plan.labels[number],
        curve=curve.name,
        public_key=totals[0],
        public_shares=public_shares,
        chain_code=digest(Tag.KEYGEN_CHAIN_CODE, context, *(key.chain_code_part for key in keys)),
        tolerate=plan.t,
        key_epoch=plan.key_epoch,
        index=index,
    )


def verify_certificates(
    session: Session,
    keys: Sequence[NewKey],
    acknowledged: dict[int, Acknowledged],
    verify: Callable[[SignedAcknowledgement], bool],
) -> tuple[Certificate, ...]:
    """SPEC 2.7. Raises `PeerFault` naming a member whose acknowledgement is of another key or badly signed."""
    for j, message in acknowledged.items():
        if len(message.acknowledgements) != len(keys):
            raise PeerFault("2.7", "an acknowledgement for each key, no more and no less", (j,))
        for signed, key in zip(message.acknowledgements, keys, strict=True):
            expected = msgspec.structs.replace(key.acknowledgement, index=j)
            if signed.acknowledgement != expected or not verify(signed):
                raise PeerFault("2.7", "an acknowledgement of another key, or badly signed", (j,))
    return tuple(
        tuple(acknowledged[j].acknowledgements[number] for j in session.members) for number in range(len(keys))
    )


def evaluate_in_exponent(curve: Curve, commitments: Sequence[bytes], x: int) -> bytes:
    """`Σ_k x^k·C_k`, the public share at `x`. Raises `InvalidPoint` if it is the identity."""
    terms = [commitments[0]]
    terms += [curve.multiply(point, pow(x, k, curve.q)) for k, point in enumerate(commitments) if k]
    return curve.add(terms)


def _open_key(session: Session, curve: Curve, f: list[int], number: int, random: Callable[[int], bytes]) -> KeyOpening:
    return KeyOpening(
        tuple(curve.generate(coefficient) for coefficient in f),
        schnorr.prove(curve, f[0], _proof_context(session.context, session.me, number), random),
        random(32),
    )


def _evaluate_all(curve: Curve, polynomials_mine: list[list[int]], j: int) -> tuple[bytes, ...]:
    return tuple(polynomials.evaluate(f, j, curve.q).to_bytes(SCALAR_BYTES, "big") for f in polynomials_mine)


def _commitment(context: bytes, sender: int, opening: Opening) -> bytes:
    return digest(Tag.KEYGEN_COMMITMENT, context, bytes([sender]), encode(opening))


def _proof_context(context: bytes, sender: int, number: int) -> bytes:
    return context + bytes([sender]) + number.to_bytes(4, "big")
