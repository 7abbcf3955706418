"""SPEC 1.8: what convicts a signer in a PRSS setup."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from enclave.bodies import BROADCAST, BodyLog, SignedBody
from enclave.errors import PeerFault, Unproven
from enclave.protocol import setup
from enclave.protocol.charges import Charge, Facts, Rules, Verdict, one_body, read_body
from enclave.protocol.session import RoundMessage

COMMITMENTS, CONTRIBUTIONS, CHECKS = 1, 2, 3


class SetupRules(Rules):
    """PRSS seeds of one epoch."""

    rounds = setup.ROUNDS
    seen_before = (0, 1, 1, 3)
    stop_rounds: Mapping[str, int] = {"1.1": 1, "1.3": 3}
    other_steps = frozenset({"1.2"})

    def check_message(self, facts: Facts, body: SignedBody, message: RoundMessage) -> None:
        groups = setup.groups_of(body.sender, facts.members, facts.t)
        match message:
            case setup.Commitments() if len(message.commitments) != len(groups):
                raise PeerFault("1.1", "a commitment for each group, no more and no less", (body.sender,))
            case setup.Contributions():
                shared = sum(body.receiver in group.members for group in groups)
                if len(message.contributions) != shared:
                    reason = "a contribution for each common group, no more and no less"
                    raise PeerFault("1.2", reason, (body.sender,))
            case setup.Checks() if len(message.checks) != len(groups):
                raise PeerFault("1.3", "a check for each group, no more and no less", (body.sender,))

    def check_round(self, facts: Facts, step: str, messages: Mapping[int, RoundMessage]) -> None:
        if step == "1.3":
            setup.verify_checks(messages, _groups(facts))  # type: ignore[arg-type]

    def judges(self) -> Mapping[str, Callable[[Facts, Charge], Verdict]]:
        return {"wrong-contribution": _wrong_contribution, "seeds-differ": _seeds_differ}

    def candidates(self, facts: Facts, log: BodyLog, me: int) -> Iterator[Charge]:
        for j in facts.members:
            committed, contributed = log.body(COMMITMENTS, j), log.body(CONTRIBUTIONS, j, me)
            if committed is not None and contributed is not None:
                yield Charge("wrong-contribution", (committed, contributed))

    def split_group(self, facts: Facts, log: BodyLog) -> Iterator[Charge]:
        bodies = log.round(CHECKS, facts.members)
        for number, body in enumerate(bodies):
            for other in bodies[:number]:
                yield Charge("seeds-differ", (other, body))


def _groups(facts: Facts) -> dict[int, tuple[setup.Group, ...]]:
    return {j: setup.groups_of(j, facts.members, facts.t) for j in facts.members}


def _wrong_contribution(facts: Facts, charge: Charge) -> Verdict:
    """Contributions to one receiver that do not open the sender's commitments."""
    contributed = one_body(charge, CONTRIBUTIONS)
    committed = one_body(charge, COMMITMENTS, contributed.sender)
    if contributed.receiver == BROADCAST:
        raise Unproven("contributions are private")
    opening, commitments = read_body(facts, contributed), read_body(facts, committed)
    assert isinstance(opening, setup.Contributions)
    assert isinstance(commitments, setup.Commitments)
    groups = setup.groups_of(contributed.sender, facts.members, facts.t)
    by_group = dict(zip(groups, commitments.commitments, strict=True))
    try:
        setup.verify_contributions(facts.context, contributed.sender, contributed.receiver, opening, by_group)
    except PeerFault as fault:
        return Verdict(fault.step, fault.reason, fault.culprits)
    raise Unproven("the contributions open the commitments")


def _seeds_differ(facts: Facts, charge: Charge) -> Verdict:
    """Two members of one group that hold different seeds: the group is named, nobody convicted."""
    if [body.round for body in charge.bodies] != [CHECKS] * 2:
        raise Unproven("two bodies of the third round are needed")
    messages = {body.sender: read_body(facts, body) for body in charge.bodies}
    try:
        setup.verify_checks(messages, _groups(facts))  # type: ignore[arg-type]
    except PeerFault as fault:
        return Verdict("1.3", fault.reason, fault.culprits, fault.subset)
    raise Unproven("the checks agree")
