"""SPEC 3.10 to 3.12: what convicts a member of a presigning batch, and the recomputation of its bodies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from enclave.bodies import BodyLog, SignedBody
from enclave.crypto import bulk
from enclave.crypto.curve import AFFINE_POINT_BYTES, SECP256K1, InvalidPoint
from enclave.errors import PeerFault, Unproven
from enclave.protocol import presign
from enclave.protocol.blame_messages import CLOSING, STOP, Closing, OpenedSeed, Stop
from enclave.protocol.charges import (
    Charge,
    Facts,
    Rules,
    Verdict,
    first_view,
    judge,
    one_body,
    read_body,
    round_messages,
    round_view,
    view_of,
)
from enclave.protocol.presign_material import Group, SubSeeds, commit, expand, groups_in
from enclave.protocol.session import RoundMessage

PRODUCTS, CHECK_PRODUCTS, CHALLENGES, OPENINGS, CONFIRMATION = range(1, 6)
# The public checks that name nobody, in their order: a batch fails at the first of these.
PUBLIC_CHECKS = (("3.3", PRODUCTS), ("3.5", CHALLENGES), ("3.7", OPENINGS))


class PresignRules(Rules):
    """A batch of `m` presignatures."""

    rounds = presign.ROUNDS
    seen_before = (0, 1, 2, 3, 4)
    stop_rounds: Mapping[str, int] = {"3.3": 1, "3.4": 2, "3.5": 3, "3.6": 4, "3.7": 4, "3.9": 5}
    confirmation_round = CONFIRMATION

    def __init__(self, m: int) -> None:
        self.m = m

    def check_message(self, facts: Facts, body: SignedBody, message: RoundMessage) -> None:
        m, sender = self.m, body.sender
        match message:
            case presign.Products():
                if len(message.commitments) != len(groups_in(facts.members, facts.t, sender)):
                    raise PeerFault("3.3", "a commitment for each group, no more and no less", (sender,))
                presign.unpack(sender, message.e_w, m, SECP256K1.q, "3.3")
                presign.unpack(sender, message.e_mu, m, SECP256K1.q, "3.3")
            case presign.CheckProducts():
                presign.unpack(sender, message.e_tau, m, SECP256K1.q, "3.4")
            case presign.Challenges():
                presign.scalar(sender, message.rho, SECP256K1.q, "3.5")
                presign.scalar(sender, message.beta, SECP256K1.q, "3.5")
            case presign.Openings():
                presign.scalar(sender, message.T, SECP256K1.q, "3.6")
                presign.unpack(sender, message.w, m, SECP256K1.q, "3.6")
                _check_points(sender, message.R, m)

    def check_round(self, facts: Facts, step: str, messages: Mapping[int, RoundMessage]) -> None:
        C, t, m, q = facts.members, facts.t, self.m, SECP256K1.q
        if step == "3.3":
            presign.verify_commitments(C, t, messages)  # type: ignore[arg-type]
        elif step == "3.5":
            presign.verify_challenges(t, messages, q)  # type: ignore[arg-type]
        elif step == "3.7":
            presign.verify_products(C, t, m, messages, q)  # type: ignore[arg-type]
            presign.verify_points(SECP256K1, C, t, m, messages)  # type: ignore[arg-type]
        elif step == "3.9" and len({message.digest for message in messages.values()}) > 1:  # type: ignore[attr-defined]
            raise PeerFault("3.9", "members computed different batches")

    def judges(self) -> Mapping[str, Callable[[Facts, Charge], Verdict]]:
        return {
            "both-signed": _both_signed,
            "sub-seeds-differ": _sub_seeds_differ,
            "wrong-confirmation": self._wrong_confirmation,
            "wrong-opening": _wrong_opening,
            "deviation": self._deviation,
        }

    def candidates(self, facts: Facts, log: BodyLog, me: int) -> Iterator[Charge]:  # noqa: ARG002
        for j in facts.members:
            stop, confirmed = log.body(STOP, j), log.known(CONFIRMATION, j)
            if stop is not None and confirmed is not None:
                yield Charge("both-signed", (stop,), (confirmed,))
            body = log.body(CONFIRMATION, j)
            earlier = (*log.round(CHALLENGES, facts.members), *log.round(OPENINGS, facts.members))
            if body is not None and len(earlier) == 2 * len(facts.members):
                yield Charge("wrong-confirmation", (*earlier, body))

    # --- after the views (SPEC 0.10) ---

    def failing_round(self, facts: Facts, log: BodyLog, complete: int) -> int:
        """The round whose public check fails, of the first `complete` rounds; 0 for none."""
        for step, number in PUBLIC_CHECKS:
            if number <= complete:
                try:
                    self.check_round(facts, step, round_messages(facts, log.round(number, facts.members), number))
                except PeerFault:
                    return number
        return 0

    def split_group(self, facts: Facts, log: BodyLog) -> Iterator[Charge]:
        """SPEC 3.3: two members of one group that committed to different sub-seeds."""
        bodies = log.round(PRODUCTS, facts.members)
        for number, body in enumerate(bodies):
            for other in bodies[:number]:
                yield Charge("sub-seeds-differ", (other, body))

    # --- after the openings (SPEC 3.12) ---

    def wrong_openings(self, facts: Facts, log: BodyLog) -> Iterator[Charge]:
        """Members that opened another sub-seed than they had committed to."""
        for j in facts.members:
            products, closing = log.body(PRODUCTS, j), log.body(CLOSING, j)
            if products is not None and closing is not None:
                yield Charge("wrong-opening", (products, closing))

    def deviations(self, facts: Facts, log: BodyLog, seeds: Mapping[Group, bytes], last_round: int) -> list[Charge]:
        """SPEC 3.12: the earliest round in which somebody's body is not what it should be: a charge against each of
        those. Members with a sub-seed that nobody opened are passed over."""
        for number in range(1, last_round + 1):
            found = []
            for j in facts.members:
                if not all(group in seeds for group in groups_in(facts.members, facts.t, j)):
                    continue
                charge = _deviation_charge(facts, log, seeds, j, number)
                try:
                    judge(facts, charge)
                except Unproven:
                    continue
                found.append(charge)
            if found:
                return found
        return []

    def _wrong_confirmation(self, facts: Facts, charge: Charge) -> Verdict:
        """A confirmation of a batch that fails its checks, or of another batch than the signer saw."""
        body = one_body(charge, CONFIRMATION)
        earlier = [each for each in charge.bodies if each is not body]
        own_opening = one_body(charge, OPENINGS, body.sender)
        # What it signed says on which bodies it computed.
        if view_of(body) != round_view(facts, earlier, OPENINGS):
            raise Unproven("confirmed on other bodies")
        if view_of(own_opening) != round_view(facts, earlier, CHALLENGES):
            raise Unproven("opened on other bodies")
        message = read_body(facts, body)
        assert isinstance(message, presign.Confirmation)
        C, t, q = facts.members, facts.t, SECP256K1.q
        try:
            rho, beta = presign.verify_challenges(t, round_messages(facts, earlier, CHALLENGES), q)  # type: ignore[arg-type]
            openings = round_messages(facts, earlier, OPENINGS)
            w = presign.verify_products(C, t, self.m, openings, q)  # type: ignore[arg-type]
            points = presign.verify_points(SECP256K1, C, t, self.m, openings)  # type: ignore[arg-type]
        except PeerFault:
            return Verdict("3.10", "confirmed a batch whose checks fail", (body.sender,))
        if message.digest == presign.compute_agreement(facts.context, self.m, rho, beta, w, points):
            raise Unproven("the confirmation is right")
        return Verdict("3.9", "confirmed another batch than the bodies it saw give", (body.sender,))

    def _deviation(self, facts: Facts, charge: Charge) -> Verdict:
        """A body that is not what the sender's own sub-seeds and the bodies it had seen give."""
        if not charge.bodies:
            raise Unproven("the accused body is missing")
        number = max(body.round for body in charge.bodies)
        body = charge.bodies[-1]
        if body.round != number or not PRODUCTS <= number <= OPENINGS:
            raise Unproven("the accused body comes last, and is of one of the first four rounds")
        earlier = charge.bodies[:-1]
        sub_seeds = _bound_sub_seeds(facts, charge, body)
        _require_bound(facts, earlier, body)
        expected = self._recompute(facts, body.sender, sub_seeds, earlier, number)
        actual = read_body(facts, body)
        wrong = [name for name in expected.__struct_fields__ if getattr(expected, name) != getattr(actual, name)]
        if not wrong:
            raise Unproven("the body is what it should be")
        step = {PRODUCTS: "3.3", CHECK_PRODUCTS: "3.4", CHALLENGES: "3.5", OPENINGS: "3.6"}[number]
        reason = f"sent another {', '.join(wrong)} than its sub-seeds and the earlier bodies give"
        return Verdict(step, reason, (body.sender,))

    def _recompute(
        self, facts: Facts, sender: int, sub_seeds: SubSeeds, earlier: Sequence[SignedBody], number: int
    ) -> RoundMessage:
        """SPEC 3.12: the message that `sender` owed in round `number`. Raises `Unproven` where a body is missing."""
        C, t, m, q = facts.members, facts.t, self.m, SECP256K1.q
        own = expand(C, t, sender, m, sub_seeds)
        if number == PRODUCTS:
            return presign.compute_products(own, sub_seeds, q)
        if number == CHALLENGES:
            return presign.compute_challenges(own)
        products = round_messages(facts, earlier, PRODUCTS)
        w, mu = presign.compute_first_shares(C, m, own, products, q)  # type: ignore[arg-type]
        if number == CHECK_PRODUCTS:
            return presign.compute_check_products(own, mu, q)
        checks = round_messages(facts, earlier, CHECK_PRODUCTS)
        tau = presign.compute_check_shares(C, m, own, checks, q)  # type: ignore[arg-type]
        challenges = round_messages(facts, earlier, CHALLENGES)
        rho, beta = presign.verify_challenges(t, challenges, q)  # type: ignore[arg-type]
        return presign.compute_openings(SECP256K1, own, tau, w, rho, beta)


def agreed_seeds(facts: Facts, log: BodyLog) -> dict[Group, bytes]:
    """All opened sub-seeds that open the group's commitment, by group."""
    seeds: dict[Group, bytes] = {}
    for j in facts.members:
        closing = log.body(CLOSING, j)
        if closing is None:
            continue
        message = read_body(facts, closing)
        assert isinstance(message, Closing)
        committed = _commitments_of(facts, log.body(PRODUCTS, j))
        for opened in message.seeds:
            group = (opened.kind, opened.members)
            if commit(opened.seed) == committed.get(group):
                seeds[group] = opened.seed
    return seeds


def _commitments_of(facts: Facts, body: SignedBody | None) -> dict[Group, bytes]:
    """What the sender of a first body committed to, by group."""
    if body is None:
        return {}
    message = read_body(facts, body)
    if not isinstance(message, presign.Products):
        raise Unproven("not a body of the first round")
    return dict(zip(groups_in(facts.members, facts.t, body.sender), message.commitments, strict=True))


def _deviation_charge(facts: Facts, log: BodyLog, seeds: Mapping[Group, bytes], j: int, number: int) -> Charge:
    # Its own first body binds it to its sub-seeds, the rounds before to what it computed with.
    bodies = [body for each in range(1, number) for body in log.round(each, facts.members)]
    accused = log.body(number, j)
    assert accused is not None
    groups = groups_in(facts.members, facts.t, j)
    opened = tuple(OpenedSeed(kind, members, seeds[kind, members]) for kind, members in groups)
    return Charge("deviation", (*bodies, accused), seeds=opened)


def _bound_sub_seeds(facts: Facts, charge: Charge, body: SignedBody) -> SubSeeds:
    """The sub-seeds in a charge, each of which opens what the accused committed to. Raises `Unproven`."""
    first = body if body.round == PRODUCTS else one_body(charge, PRODUCTS, body.sender)
    committed = _commitments_of(facts, first)
    opened = {(seed.kind, seed.members): seed.seed for seed in charge.seeds}
    if opened.keys() != committed.keys() or any(commit(opened[group]) != value for group, value in committed.items()):
        raise Unproven("the sub-seeds are not those the accused committed to")
    # In the order in which the accused expands them.
    return SubSeeds(
        {members: opened[kind, members] for kind, members in committed if kind == "subset"},
        {members: opened[kind, members] for kind, members in committed if kind == "pair"},
    )


def _require_bound(facts: Facts, earlier: Sequence[SignedBody], body: SignedBody) -> None:
    """The accused's own views say that it computed on `earlier`. Raises `Unproven`."""
    own = {each.round: each for each in earlier if each.sender == body.sender} | {body.round: body}
    for number in range(1, body.round + 1):
        if number not in own:
            raise Unproven(f"the accused's body of round {number} is missing")
        expected = first_view(facts.context) if number == 1 else round_view(facts, earlier, number - 1)
        if view_of(own[number]) != expected:
            raise Unproven(f"the accused computed round {number} on other bodies")


def _both_signed(facts: Facts, charge: Charge) -> Verdict:
    """A confirmation and an abort of one batch."""
    stop = one_body(charge, STOP)
    if len(charge.refs) != 1 or (charge.refs[0].round, charge.refs[0].sender) != (CONFIRMATION, stop.sender):
        raise Unproven("a stop and a confirmation of one signer are needed")
    message = read_body(facts, stop)
    assert isinstance(message, Stop)
    if message.confirmation is not None:
        raise Unproven("the stop says that it had confirmed")
    return Verdict("3.10", "signed both a confirmation and an abort", (stop.sender,))


def _sub_seeds_differ(facts: Facts, charge: Charge) -> Verdict:
    """Two members of one group that committed to different sub-seeds: the group is named, nobody convicted."""
    if [body.round for body in charge.bodies] != [PRODUCTS] * 2:
        raise Unproven("two bodies of the first round are needed")
    messages = {body.sender: read_body(facts, body) for body in charge.bodies}
    try:
        presign.verify_commitments(facts.members, facts.t, messages)  # type: ignore[arg-type]
    except PeerFault as fault:
        return Verdict("3.3", fault.reason, fault.culprits, fault.subset)
    raise Unproven("the commitments agree")


def _wrong_opening(facts: Facts, charge: Charge) -> Verdict:
    """An opened sub-seed that is none of the signer's, or does not open its commitment."""
    closing = one_body(charge, CLOSING)
    committed = _commitments_of(facts, one_body(charge, PRODUCTS, closing.sender))
    message = read_body(facts, closing)
    assert isinstance(message, Closing)
    opened = {(seed.kind, seed.members): seed.seed for seed in message.seeds}
    right = all(commit(seed) == committed.get(group) for group, seed in opened.items())
    if right and (not message.seeds or (opened.keys() == committed.keys() and len(message.seeds) == len(opened))):
        raise Unproven("the openings are right")
    return Verdict("3.11", "opened other sub-seeds than it committed to", (closing.sender,))


def _check_points(sender: int, points: bytes, m: int) -> None:
    if len(points) != m * AFFINE_POINT_BYTES:
        raise PeerFault("3.6", f"{m} points expected", (sender,))
    try:
        bulk.PointRow(SECP256K1, points)
    except InvalidPoint as error:
        raise PeerFault("3.6", str(error), (sender,)) from None
