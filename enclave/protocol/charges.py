"""SPEC 0.11: what proves to anybody that a signer broke a protocol, and how it is judged. Pure; nothing is trusted here
but the frame keys that `Facts` names.

A charge holds signed bodies and says what is wrong with them. `judge` convicts or raises `Unproven`; no charge can be
made up against a signer that follows the protocol. What each protocol adds is in its `Rules`. A charge with what binds
the frame keys to identities is evidence (SPEC 0.12).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from enclave.bodies import BROADCAST, BodyLog, BodyRef, SignedBody
from enclave.channels.frames import verify_ref
from enclave.errors import Malformed, PeerFault, Unproven
from enclave.protocol.blame_messages import BLAME_ROUNDS, STOP, VIEWS, Closing, OpenedSeed, Stop, Views
from enclave.protocol.session import RoundMessage
from enclave.wire import Wire, decode
from policies.transcript import DIGEST_BYTES, Tag, digest

MAX_BODIES = 128
COMMON_STEPS = ("0.5", "0.6", "0.9", "0.10")

M = TypeVar("M", bound=RoundMessage)


class Charge(Wire, frozen=True):
    """One accusation with all that proves it. Which bodies, references and seeds it needs its `kind` says."""

    kind: Annotated[str, msgspec.Meta(pattern=r"^[a-z-]{1,32}$(?!\n)")]
    bodies: Annotated[tuple[SignedBody, ...], msgspec.Meta(max_length=MAX_BODIES)] = ()
    refs: Annotated[tuple[BodyRef, ...], msgspec.Meta(max_length=2)] = ()
    seeds: Annotated[tuple[OpenedSeed, ...], msgspec.Meta(max_length=1024)] = ()


@dataclass(frozen=True)
class Verdict:
    """Whom a charge convicts (`culprits`), or in which group somebody cheated (`subset`), and by which step."""

    step: str
    reason: str
    culprits: tuple[int, ...]
    subset: tuple[int, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known of a ceremony before anybody is accused: `frame_keys` of all members, by index."""

    context: bytes
    members: tuple[int, ...]
    t: int
    frame_keys: Mapping[int, bytes]
    rules: Rules


class Rules:
    """What a protocol says about its own bodies.

    `seen_before`: for each round the broadcast round whose view its bodies carry, 0 for the ceremony's first view.
    `stop_rounds`: for each step that anybody can check again, the broadcast round after which it is checked;
    `other_steps`: those that only its receiver can.
    """

    rounds: tuple[type[RoundMessage], ...]
    seen_before: tuple[int, ...]
    stop_rounds: Mapping[str, int]
    other_steps: frozenset[str] = frozenset()
    confirmation_round = 0

    def check_message(self, facts: Facts, body: SignedBody, message: RoundMessage) -> None:
        """Raises `PeerFault` for a message that is wrong by itself, whatever others sent."""

    def check_round(self, facts: Facts, step: str, messages: Mapping[int, RoundMessage]) -> None:
        """The public check of `step` on the messages of its round. Raises `PeerFault` where it fails."""
        raise NotImplementedError

    def judges(self) -> Mapping[str, Callable[[Facts, Charge], Verdict]]:
        """The protocol's own charges."""
        raise NotImplementedError

    def candidates(self, facts: Facts, log: BodyLog, me: int) -> Iterator[Charge]:
        """Charges of the protocol that may hold for what is in `log`."""
        raise NotImplementedError

    def split_group(self, facts: Facts, log: BodyLog) -> Iterator[Charge]:  # noqa: ARG002
        """Charges that may name a group whose members disagree, and nobody in it."""
        yield from ()


def judge(facts: Facts, charge: Charge) -> Verdict:
    """Convict, or raise `Unproven`: the charge is not proved by what it holds."""
    for body in charge.bodies:
        _require(_signed(facts, body.ref), f"a body that signer {body.sender} did not sign for this ceremony")
    if charge.kind != "bad-body":
        _require_places(facts, charge.bodies)
    for ref in charge.refs:
        _require(_signed(facts, ref), f"a reference that signer {ref.sender} did not sign for this ceremony")
    table = {
        "two-bodies": _two_bodies,
        "bad-body": _bad_body,
        "contradiction": _contradiction,
        "false-stop": _false_stop,
        **facts.rules.judges(),
    }
    if charge.kind not in table:
        raise Unproven(f"no charge is called {charge.kind!r}")
    try:
        return table[charge.kind](facts, charge)
    except PeerFault as fault:
        # Of a body that proves another charge; "bad-body" is the one for it.
        raise Unproven(f"a body is wrong by itself: {fault}") from None


def read_body(facts: Facts, body: SignedBody) -> RoundMessage:
    """The message of a body. Raises `PeerFault` naming its sender where no honest signer signs such a body."""
    kind = round_kind(facts.rules, body.round)
    if kind is None:
        raise PeerFault("0.6", f"round {body.round} does not exist", (body.sender,))
    try:
        if len(body.content) < DIGEST_BYTES:
            raise Malformed("a body without a view")
        message = decode(body.content[DIGEST_BYTES:], kind)
    except Malformed as error:
        raise PeerFault("0.6", str(error), (body.sender,)) from None
    if body.round in BLAME_ROUNDS:
        _check_blame_message(facts, body.sender, message)
        return message
    if facts.rules.seen_before[body.round - 1] == 0 and view_of(body) != first_view(facts.context):
        raise PeerFault("0.5", "a view of bodies where there were none yet", (body.sender,))
    facts.rules.check_message(facts, body, message)
    return message


def round_kind(rules: Rules, number: int) -> type[RoundMessage] | None:
    """The type of a round's messages, None for a round that does not exist."""
    if 1 <= number <= len(rules.rounds):
        return rules.rounds[number - 1]
    return BLAME_ROUNDS.get(number)


def view_of(body: SignedBody) -> bytes:
    """The view that a body starts with (SPEC 0.5)."""
    return body.content[:DIGEST_BYTES]


def first_view(context: bytes) -> bytes:
    """The view before any body (SPEC 0.5)."""
    return digest(Tag.VIEW, context)


def view_after(context: bytes, number: int, hashes: Sequence[bytes]) -> bytes:
    """The view of a broadcast round: all members' content hashes, in order (SPEC 0.5)."""
    return digest(Tag.VIEW, context, bytes([number]), *hashes)


def round_messages(facts: Facts, bodies: Sequence[SignedBody], number: int) -> dict[int, RoundMessage]:
    """The messages of one broadcast round among `bodies`, of all members. Raises `Unproven`, `PeerFault`."""
    found = {body.sender: body for body in bodies if body.round == number and body.receiver == BROADCAST}
    _require(tuple(sorted(found)) == facts.members, f"not the bodies of round {number} of all members")
    return {j: read_body(facts, found[j]) for j in facts.members}


def round_view(facts: Facts, bodies: Sequence[SignedBody], number: int) -> bytes:
    """The view that the round's bodies among `bodies` give. Raises `Unproven` unless all members' are there."""
    found = [body for body in bodies if body.round == number and body.receiver == BROADCAST]
    hashes = {body.sender: body.ref.content_hash for body in found}
    _require(tuple(sorted(hashes)) == facts.members, f"not the bodies of round {number} of all members")
    return view_after(facts.context, number, [hashes[j] for j in facts.members])


def one_body(charge: Charge, number: int, sender: int = 0) -> SignedBody:
    """The one body of a round in a charge (of `sender`). Raises `Unproven`."""
    found = [body for body in charge.bodies if body.round == number and sender in (0, body.sender)]
    _require(len(found) == 1, f"not exactly one body of round {number}")
    return found[0]


def _signed(facts: Facts, ref: BodyRef) -> bool:
    key = facts.frame_keys.get(ref.sender)
    return key is not None and verify_ref(key, facts.context, ref)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise Unproven(reason)


def _require_places(facts: Facts, bodies: Sequence[SignedBody]) -> None:
    """One body of each sender and round, of the round's form. A content hash covers no receiver, so a cheater could
    sign what a member saw for another receiver, and beside it what the member is judged by. Raises `Unproven`."""
    for body in bodies:
        kind = round_kind(facts.rules, body.round)
        form = kind is not None and kind.private == (body.receiver != BROADCAST)
        _require(form, f"a body of another form than round {body.round} has")
        _require(not body.receiver or body.receiver in facts.members, "a body for no member")
    places = {(body.round, body.sender) for body in bodies}
    _require(len(places) == len(bodies), "two bodies of one sender and round")


# --- charges of every protocol ---


def _two_bodies(_: Facts, charge: Charge) -> Verdict:
    """Two references: one place, two contents."""
    _require(len(charge.refs) == 2, "two references are needed")
    one, other = charge.refs
    _require(one.place == other.place and one.content_hash != other.content_hash, "not two bodies for one place")
    return Verdict("0.11", f"signed two bodies for round {one.round}", (one.sender,))


def _bad_body(facts: Facts, charge: Charge) -> Verdict:
    """One body that no honest signer signs."""
    _require(len(charge.bodies) == 1, "one body is needed")
    (body,) = charge.bodies
    kind = round_kind(facts.rules, body.round)
    _require(kind is None or kind.private == (body.receiver != BROADCAST), "a body of another form than its round's")
    try:
        read_body(facts, body)
    except PeerFault as fault:
        return Verdict(fault.step, fault.reason, (body.sender,))
    raise Unproven("nothing is wrong with this body by itself")


def _contradiction(facts: Facts, charge: Charge) -> Verdict:
    """A signer's views and an earlier body of its own, whose view is not that of the bodies it says it holds."""
    _require(len(charge.bodies) == 2, "two bodies are needed")
    views = one_body(charge, VIEWS)
    (body,) = (each for each in charge.bodies if each is not views)
    _require(body.sender == views.sender and 1 <= body.round <= len(facts.rules.rounds), "bodies of two signers")
    before = facts.rules.seen_before[body.round - 1]
    _require(before > 0, "a body before any view")
    listed = _listed(facts, views)
    hashes = [listed[before, j].content_hash for j in facts.members if (before, j) in listed]
    if len(hashes) == len(facts.members) and view_of(body) == view_after(facts.context, before, hashes):
        raise Unproven("the view is that of the bodies listed")
    reason = f"sent round {body.round} with a view of other bodies than it holds"
    return Verdict("0.11", reason, (body.sender,))


def _false_stop(facts: Facts, charge: Charge) -> Verdict:
    """A stop for a check that does not fail on the very bodies that the signer saw."""
    stop = one_body(charge, STOP)
    said = _as(Stop, facts, stop)
    reason = f"stopped for step {said.step}, which holds on what it saw"
    if said.step == "0.5":
        _require_right_views(facts, charge, stop.sender, said.round)
        return Verdict("0.11", reason, (stop.sender,))
    number = facts.rules.stop_rounds.get(said.step, 0)
    _require(number > 0, f"a stop for step {said.step!r} can't be proved wrong")
    _require(view_of(stop) == round_view(facts, charge.bodies, number), "the stop was made on other bodies")
    try:
        facts.rules.check_round(facts, said.step, round_messages(facts, charge.bodies, number))
    except PeerFault as fault:
        raise Unproven(f"the stop was right: {fault}") from None
    return Verdict("0.11", reason, (stop.sender,))


def _require_right_views(facts: Facts, charge: Charge, sender: int, number: int) -> None:
    """All bodies of round `number` carry the view of the bodies that `sender` lists. Raises `Unproven`."""
    rules = facts.rules
    _require(1 <= number <= len(rules.rounds) and not rules.rounds[number - 1].private, "not a broadcast round")
    listed = _listed(facts, one_body(charge, VIEWS, sender))
    before = rules.seen_before[number - 1]
    expected = first_view(facts.context)
    if before:
        _require(all((before, j) in listed for j in facts.members), "a view of bodies that are not listed")
        expected = view_after(facts.context, before, [listed[before, j].content_hash for j in facts.members])
    for j in facts.members:
        body = one_body(charge, number, j)
        _require((number, j) in listed and listed[number, j].content_hash == body.ref.content_hash, "another body")
        _require(view_of(body) == expected, "a view is another one indeed")


def _listed(facts: Facts, views: SignedBody) -> dict[tuple[int, int], BodyRef]:
    return {(ref.round, ref.sender): ref for ref in _as(Views, facts, views).refs}


def _as(kind: type[M], facts: Facts, body: SignedBody) -> M:
    message = read_body(facts, body)
    if not isinstance(message, kind):
        raise Unproven("a body of another round")
    return message


# --- the rounds of blame ---


def _check_blame_message(facts: Facts, sender: int, message: RoundMessage) -> None:
    """SPEC 0.9, 0.10: every reference is one that its sender signed, none twice. Raises `PeerFault` naming `sender`."""
    refs: tuple[BodyRef, ...] = ()
    if isinstance(message, Stop):
        _check_stop(facts, sender, message)
        refs = message.refs
    elif isinstance(message, Views):
        refs = message.refs
    elif isinstance(message, Closing):
        refs = message.views
    places = [ref.place for ref in refs]
    if places != sorted(set(places)):
        raise PeerFault("0.10", "references out of order, or one place twice", (sender,))
    for ref in refs:
        _check_ref(facts, sender, ref)


def _check_stop(facts: Facts, sender: int, stop: Stop) -> None:
    if (stop.step == "") != (stop.follows is not None):
        raise PeerFault("0.9", "a stop has a step of its own, or follows another", (sender,))
    rules = facts.rules
    if stop.step not in {"", *COMMON_STEPS, *rules.stop_rounds, *rules.other_steps}:
        raise PeerFault("0.9", "a stop for a check that this ceremony does not have", (sender,))
    if stop.follows is not None:
        if stop.follows.round != STOP or stop.follows.sender == sender:
            raise PeerFault("0.9", "a stop follows another member's stop", (sender,))
        _check_ref(facts, sender, stop.follows)
    if stop.confirmation is not None:
        ref = stop.confirmation.ref
        if (ref.round, ref.sender) != (rules.confirmation_round, sender):
            raise PeerFault("0.9", "not a confirmation of its own", (sender,))
        _check_ref(facts, sender, ref)


def _check_ref(facts: Facts, sender: int, ref: BodyRef) -> None:
    kind = round_kind(facts.rules, ref.round)
    if kind is None or kind.private or ref.receiver != BROADCAST or not _signed(facts, ref):
        raise PeerFault("0.10", "a reference to a body that nobody signed", (sender,))
