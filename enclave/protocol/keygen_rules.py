"""SPEC 2.8: what convicts a signer in key generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from enclave.bodies import BROADCAST, BodyLog, SignedBody
from enclave.crypto.curve import SECP256K1
from enclave.errors import PeerFault, Unproven
from enclave.protocol import keygen
from enclave.protocol.charges import (
    Charge,
    Facts,
    Rules,
    Verdict,
    one_body,
    read_body,
    round_messages,
    round_view,
    view_of,
)
from enclave.protocol.session import RoundMessage
from enclave.wire import SignedAcknowledgement

COMMITMENT, OPENING, SHARES, AGREEMENT, ACKNOWLEDGED = range(1, 6)


class KeygenRules(Rules):
    """One key for each label of `plan`. `verify`: whether an acknowledgement is signed by its signer's identity key."""

    rounds = keygen.ROUNDS
    seen_before = (0, 1, 1, 2, 4)
    stop_rounds: Mapping[str, int] = {"2.4": 4}
    other_steps = frozenset({"2.3", "2.5", "2.7"})

    def __init__(self, plan: keygen.KeyPlan, verify: Callable[[SignedAcknowledgement], bool]) -> None:
        self._plan, self._verify = plan, verify

    def check_message(self, facts: Facts, body: SignedBody, message: RoundMessage) -> None:
        count = len(self._plan.labels)
        match message:
            case keygen.Opening():
                keygen.verify_opening_alone(facts.context, SECP256K1, facts.t, count, body.sender, message)
            case keygen.Shares():
                if len(message.shares) != count:
                    raise PeerFault("2.3", "a share for each key, no more and no less", (body.sender,))
                if not all(0 < int.from_bytes(share, "big") < SECP256K1.q for share in message.shares):
                    raise PeerFault("2.3", "a share outside 1..q-1", (body.sender,))
            case keygen.Acknowledged() if len(message.acknowledgements) != count:
                raise PeerFault("2.7", "an acknowledgement for each key, no more and no less", (body.sender,))

    def check_round(self, facts: Facts, step: str, messages: Mapping[int, RoundMessage]) -> None:  # noqa: ARG002
        if len({message.digest for message in messages.values()}) > 1:  # type: ignore[attr-defined]
            raise PeerFault("2.4", "members saw different commitments or openings")

    def judges(self) -> Mapping[str, Callable[[Facts, Charge], Verdict]]:
        return {
            "wrong-commitment": self._wrong_commitment,
            "wrong-shares": _wrong_shares,
            "wrong-agreement": _wrong_agreement,
            "wrong-acknowledgement": self._wrong_acknowledgement,
        }

    def candidates(self, facts: Facts, log: BodyLog, me: int) -> Iterator[Charge]:
        first, second = log.round(COMMITMENT, facts.members), log.round(OPENING, facts.members)
        for j in facts.members:
            committed, opened, shares = log.body(COMMITMENT, j), log.body(OPENING, j), log.body(SHARES, j, me)
            agreed, acknowledged = log.body(AGREEMENT, j), log.body(ACKNOWLEDGED, j)
            if committed is not None and opened is not None:
                yield Charge("wrong-commitment", (committed, opened))
            if opened is not None and shares is not None:
                yield Charge("wrong-shares", (opened, shares))
            if agreed is not None and first and second:
                yield Charge("wrong-agreement", (*first, *second, agreed))
                if acknowledged is not None:
                    yield Charge("wrong-acknowledgement", (*second, agreed, acknowledged))

    def _wrong_commitment(self, facts: Facts, charge: Charge) -> Verdict:
        """An opening that is not what the signer had committed to."""
        opened = one_body(charge, OPENING)
        committed = one_body(charge, COMMITMENT, opened.sender)
        opening, commitment = read_body(facts, opened), read_body(facts, committed)
        assert isinstance(opening, keygen.Opening)
        assert isinstance(commitment, keygen.Commitment)
        try:
            keygen.verify_opening(facts.context, SECP256K1, self._plan, opened.sender, opening, commitment.commitment)
        except PeerFault as fault:
            return Verdict(fault.step, fault.reason, fault.culprits)
        raise Unproven("the opening is right")

    def _wrong_acknowledgement(self, facts: Facts, charge: Charge) -> Verdict:
        """An acknowledgement of another key than the openings give that the signer agreed to, or badly signed."""
        acknowledged = one_body(charge, ACKNOWLEDGED)
        sender = acknowledged.sender
        if view_of(one_body(charge, AGREEMENT, sender)) != round_view(facts, charge.bodies, OPENING):
            raise Unproven("agreed to other openings")
        message = read_body(facts, acknowledged)
        assert isinstance(message, keygen.Acknowledged)
        openings = {j: _as_opening(each) for j, each in round_messages(facts, charge.bodies, OPENING).items()}
        fault = Verdict("2.7", "an acknowledgement of another key, or badly signed", (sender,))
        for number, signed in enumerate(message.acknowledgements):
            try:
                expected = keygen.compute_acknowledgement(
                    facts.context, facts.members, sender, SECP256K1, self._plan, number, openings
                )
            except PeerFault:
                return fault
            if signed.acknowledgement != expected or not self._verify(signed):
                return fault
        raise Unproven("the acknowledgements are right")


def _wrong_shares(facts: Facts, charge: Charge) -> Verdict:
    """Private shares that are not on the polynomials the sender opened commitments to."""
    sent = one_body(charge, SHARES)
    if sent.receiver == BROADCAST:
        raise Unproven("shares are private")
    shares, opening = read_body(facts, sent), read_body(facts, one_body(charge, OPENING, sent.sender))
    assert isinstance(shares, keygen.Shares)
    assert isinstance(opening, keygen.Opening)
    try:
        keygen.verify_shares(SECP256K1, sent.receiver, sent.sender, shares, opening)
    except PeerFault as fault:
        return Verdict(fault.step, fault.reason, fault.culprits)
    raise Unproven("the shares match the commitments")


def _wrong_agreement(facts: Facts, charge: Charge) -> Verdict:
    """A digest that is not that of the commitments and openings the signer saw."""
    agreed = one_body(charge, AGREEMENT)
    own_opening = one_body(charge, OPENING, agreed.sender)
    if view_of(agreed) != round_view(facts, charge.bodies, OPENING):
        raise Unproven("agreed to other openings")
    if view_of(own_opening) != round_view(facts, charge.bodies, COMMITMENT):
        raise Unproven("opened after other commitments")
    message = read_body(facts, agreed)
    assert isinstance(message, keygen.Agreement)
    commitments, openings = (
        round_messages(facts, charge.bodies, COMMITMENT),
        round_messages(facts, charge.bodies, OPENING),
    )
    if message.digest == keygen.compute_agreement(facts.context, commitments, openings):  # type: ignore[arg-type]
        raise Unproven("the digest is right")
    return Verdict("2.4", "agreed to other commitments or openings than it saw", (agreed.sender,))


def _as_opening(message: RoundMessage) -> keygen.Opening:
    assert isinstance(message, keygen.Opening)
    return message
