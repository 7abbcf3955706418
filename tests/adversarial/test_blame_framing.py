"""A cheater that lies about what happened (SPEC 0.9 to 0.11, 3.10 to 3.12): forged views, false alarms, withheld and
wrong openings, aborts beside confirmations, forked members. It convicts itself or nobody, and nothing is opened for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from enclave import wire
from enclave.bodies import BROADCAST, BodyRef, SignedBody
from enclave.errors import PeerFault
from enclave.protocol import presign
from enclave.protocol.blame import Outcome
from enclave.protocol.blame_messages import CLOSING, STOP, VIEWS, Closing, OpenedSeed, Stop, Views
from enclave.protocol.charges import Charge
from enclave.protocol.session import RoundMessage
from policies.transcript import DIGEST_BYTES
from tests.adversarial.test_blame import told
from tests.adversarial.test_presign_cheats import plus
from tests.fakes.accountable import Court, court, judged
from tests.fakes.rounds import CHEATER, rewrite

CONVICTED = ((CHEATER,), (), ())
BOTH = {1: CONVICTED, 3: CONVICTED}
KINDS: dict[int, type[RoundMessage]] = {STOP: Stop, VIEWS: Views, CLOSING: Closing}
Change = Callable[[Any, int], Any]


def wrong_product(message: RoundMessage, _: int | None) -> RoundMessage:
    """An error in the first round, found as `T ≠ 0` in the fourth."""
    if isinstance(message, presign.Products):
        return msgspec.structs.replace(message, e_w=plus(message.e_w, 1, 5))
    return message


def wrong_batch(changes: dict[int, Change] | None = None, m: int = 2) -> Court:
    """The cheater's product is wrong, and it changes what it says in the rounds of blame; None withholds it."""
    running = court("presign", m=m, alters={CHEATER: wrong_product})
    running.cheat = lying(changes or {})
    return running


def lying(changes: dict[int, Change]) -> Callable[[int, int, int, bytes], bytes | None]:
    """What the cheater says in the rounds of blame, by round: `change(message, receiver)`, None to withhold it."""

    def cheat(sender: int, receiver: int, number: int, content: bytes) -> bytes | None:
        if sender != CHEATER or number not in changes:
            return content
        message = wire.decode(content[DIGEST_BYTES:], KINDS[number])
        changed = changes[number](message, receiver)
        return None if changed is None else content[:DIGEST_BYTES] + wire.encode(changed)

    return cheat


def replace(**fields: Any) -> Change:
    """Say these in place of what is true."""
    return lambda message, receiver: msgspec.structs.replace(message, **fields)


def no_seed(running: Court) -> bool:
    return running.opened() - {CHEATER} == set()


def test_a_cheater_that_owns_up_is_convicted_by_its_sub_seeds() -> None:
    running = wrong_batch()
    assert told(running, {CHEATER}) == BOTH
    assert running.opened() == {1, 2, 3}
    outcome = running.parties[1].outcome
    assert (outcome.step, outcome.reason) == (
        "3.3",
        "sent another e_w than its sub-seeds and the earlier bodies give",
    )
    assert [charge.kind for charge in outcome.charges] == ["deviation"]


# --- what it opens ---


def test_opening_nothing_saves_nobody_where_the_others_know_every_seed() -> None:
    assert told(wrong_batch({CLOSING: replace(seeds=())}), {CHEATER}) == BOTH
    assert told(wrong_batch({CLOSING: lambda message, receiver: None}), {CHEATER}) == BOTH


def test_opening_another_sub_seed_convicts_by_itself() -> None:
    other = lambda m, r: msgspec.structs.replace(  # noqa: E731
        m, seeds=tuple(OpenedSeed(s.kind, s.members, bytes(32)) for s in m.seeds)
    )
    running = wrong_batch({CLOSING: other})
    assert told(running, {CHEATER}) == BOTH
    charge = Charge("wrong-opening", (running.body(1, CHEATER), running.body(CLOSING, CHEATER)))
    verdict = judged(running.facts, charge)
    assert not isinstance(verdict, str)
    assert (verdict.step, verdict.culprits) == ("3.11", (CHEATER,))


def test_two_cheaters_that_open_nothing_are_silent_and_nobody_is_convicted() -> None:
    """Only these two know the sub-seed of their pair: SPEC 3.12 passes them over."""

    def cheat(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if sender in (4, 5) and number == CLOSING:
            return rewrite(content, Closing, replace_seeds)
        return content

    running = court("presign", 5, 2, 1, {4: wrong_product})
    running.cheat = cheat
    assert told(running, {4, 5}) == dict.fromkeys((1, 2, 3), ((), (), (4, 5)))


def replace_seeds(message: Closing) -> Closing:
    return msgspec.structs.replace(message, seeds=())


# --- silence ---


@pytest.mark.parametrize("number", [STOP, VIEWS])
def test_withholding_a_round_of_blame_is_silence_and_opens_nothing(number: int) -> None:
    running = wrong_batch({number: lambda message, receiver: None})
    assert told(running, {CHEATER}) == {1: ((), (), (CHEATER,)), 3: ((), (), (CHEATER,))}
    assert no_seed(running)


def test_a_stop_for_one_alone_is_silence_for_the_other() -> None:
    running = wrong_batch({STOP: lambda message, receiver: message if receiver == 1 else None})
    assert told(running, {CHEATER})[3] == ((), (), (CHEATER,))
    assert running.opened() - {CHEATER} == set()


def test_a_body_withheld_from_one_convicts_nobody_and_opens_nothing() -> None:
    """The wrong product's last consequence is kept from signer 3: a gap is not proof of anything."""
    running = court("presign", m=2, alters={CHEATER: wrong_product})
    running.cheat = lambda s, r, n, content: None if (s, r, n) == (CHEATER, 3, 4) else content
    found = told(running, {CHEATER})
    assert found == {1: ((), (), (2, 3)), 3: ((), (), (2,))}
    assert no_seed(running)


# --- forged views ---


def test_a_reference_that_nobody_signed_convicts_who_passed_it_on() -> None:
    forged = lambda m, r: msgspec.structs.replace(  # noqa: E731
        m,
        refs=tuple(msgspec.structs.replace(ref, content_hash=bytes(32)) if ref.sender == 1 else ref for ref in m.refs),
    )
    for number in (STOP, VIEWS):
        running = wrong_batch({number: forged})
        assert told(running, {CHEATER}) == BOTH
        assert no_seed(running)


def test_leaving_out_bodies_that_it_built_on_contradicts_its_own() -> None:
    fewer = lambda m, r: msgspec.structs.replace(m, refs=tuple(ref for ref in m.refs if ref.sender != 1))  # noqa: E731
    running = wrong_batch({VIEWS: fewer})
    assert told(running, {CHEATER}) == BOTH
    assert no_seed(running)


def test_two_different_views_convict() -> None:
    """Right ones for signer 1, who opens; others for signer 3, who doesn't: the closings show both."""
    fewer = lambda m, r: (  # noqa: E731
        m if r == 1 else msgspec.structs.replace(m, refs=tuple(ref for ref in m.refs if ref.round < 4))
    )
    running = wrong_batch({VIEWS: fewer})
    assert told(running, {CHEATER}) == BOTH


def test_references_out_of_order_or_twice_convict() -> None:
    for change in (
        lambda m, r: msgspec.structs.replace(m, refs=m.refs[::-1]),
        lambda m, r: msgspec.structs.replace(m, refs=(*m.refs, m.refs[-1])),
    ):
        assert told(wrong_batch({VIEWS: change}), {CHEATER}) == BOTH


def test_garbage_in_a_round_of_blame_convicts() -> None:
    for number in (STOP, VIEWS, CLOSING):
        running = court("presign", m=2, alters={CHEATER: wrong_product})
        running.cheat = lambda s, r, n, c, number=number: c + b"x" if (s, n) == (CHEATER, number) else c
        assert told(running, {CHEATER}) == BOTH


def test_a_proof_that_proves_nothing_is_ignored() -> None:
    """A charge against signer 1 over its honest body, one that is no charge, and one with a forged reference."""
    running = wrong_batch()
    told(running, {CHEATER})
    honest = running.body(1, 1)
    forged = BodyRef(1, 1, BROADCAST, bytes(32), bytes(64))
    for proof in (
        wire.encode(Charge("bad-body", (honest,))),
        wire.encode(Charge("two-bodies", (), (honest.ref, forged))),
        b"garbage",
    ):
        assert told(wrong_batch({STOP: replace(proof=proof)}), {CHEATER}) == BOTH


# --- false alarms ---


@pytest.mark.parametrize("step", ["3.3", "3.4", "3.5", "3.6", "3.7", "0.5"])
def test_a_false_alarm_convicts_and_opens_nothing(step: str) -> None:
    """Nothing is wrong; after round `number` the cheater stops for a check that holds."""
    number = {"3.3": 1, "3.4": 2, "3.5": 3, "3.6": 4, "3.7": 4, "0.5": 3}[step]
    running = court("presign", m=2)
    outcomes = raise_false_alarm(running, number, step)
    assert {j: (o.culprits, o.subset, o.silent) for j, o in outcomes.items()} == BOTH
    assert no_seed(running)


def raise_false_alarm(running: Court, number: int, step: str) -> dict[int, Any]:
    """The cheater's check of `step` fails as soon as it has gathered round `number`, whatever it has seen."""
    party = running.parties[CHEATER]
    say = party.session.broadcast

    def broadcast(message: RoundMessage) -> None:
        if isinstance(message, presign.ROUNDS[number]):
            party.session.round = number
            raise PeerFault(step, "so it says")
        say(message)

    party.session.broadcast = broadcast  # type: ignore[method-assign]
    running.run()
    outcomes = running.end()
    running.check({CHEATER})
    return {j: outcome for j, outcome in outcomes.items() if j != CHEATER}


def test_a_stop_that_accuses_another_without_proof_convicts_nobody() -> None:
    """SPEC 0.6 for a body out of order is proved to its receiver alone: the others report both as silent."""
    running = court("presign", m=2)
    party = running.parties[CHEATER]
    running.start()
    party.session.fail(PeerFault("0.6", "round 3 after 1", (1,)))
    running.deliver()
    outcomes = running.end()
    running.check({CHEATER})
    assert (outcomes[3].culprits, outcomes[3].silent) == ((), (1, 2))
    assert outcomes[1].culprits == ()
    assert no_seed(running)


def test_a_stop_that_follows_nobody_convicts() -> None:
    """A circle of followers can't be made: a stop that follows holds the other's signature."""
    forged = BodyRef(STOP, 1, BROADCAST, bytes(32), bytes(64))
    own = BodyRef(STOP, CHEATER, BROADCAST, bytes(32), bytes(64))
    for changes in ({"follows": forged}, {"follows": own}, {"follows": None}, {"step": "9.9", "follows": None}):
        running = wrong_batch({STOP: replace(**{"step": "", **changes})})
        assert told(running, {CHEATER}) == BOTH
        assert no_seed(running)


# --- confirmations ---


def test_claiming_a_confirmation_to_avoid_the_opening_convicts() -> None:
    running = wrong_batch()

    def confirm(message: Stop, receiver: int) -> Stop:
        content = running.parties[CHEATER].session.view + wire.encode(presign.Confirmation(bytes(32)))
        return msgspec.structs.replace(message, confirmation=running.sign(CHEATER, 5, BROADCAST, content))

    running.cheat = lying({STOP: confirm})
    assert told(running, {CHEATER}) == BOTH
    assert no_seed(running)


def test_aborting_after_confirming_convicts() -> None:
    """Signer 1 gets the confirmation and finishes; signer 3 gets an abort. Both learn of both."""
    running = court("presign", m=2)

    def cheat(sender: int, receiver: int, number: int, content: bytes) -> bytes | None:
        if (sender, number) != (CHEATER, 5):
            return content
        if receiver == 1:
            return content
        stop = Stop("3.7", 4, 0, None, None, (), b"")
        body = running.sign(CHEATER, STOP, BROADCAST, content[:DIGEST_BYTES] + wire.encode(stop))
        running.queue.append((3, (STOP, CHEATER, BROADCAST, body.content, body.signature)))
        return None

    running.cheat = cheat
    assert told(running, {CHEATER}) == BOTH
    assert [len(running.parties[j].delivered) for j in (1, 3)] == [1, 0]
    assert no_seed(running)


def test_the_honest_never_sign_both() -> None:
    for number in range(1, 6):
        running = court("presign", m=2)
        running.cheat = lambda s, r, n, c, number=number: (
            c[:-1] + bytes([c[-1] ^ 1]) if (s, n) == (CHEATER, number) else c
        )
        told(running, {CHEATER})
        for j in (1, 3):
            signed = {body.round: body for body in running.sent if body.sender == j}
            stop = wire.decode(signed[STOP].content[DIGEST_BYTES:], Stop)
            assert (stop.confirmation is None) == (5 not in signed)


# --- forks ---


def wrong_check(message: RoundMessage, _: int | None) -> RoundMessage:
    """A wrong share of `T`: the last values of the batch, so that all bodies before are those of an honest run."""
    if isinstance(message, presign.Openings):
        return msgspec.structs.replace(message, T=plus(message.T, 1, 1))
    return message


def test_a_fork_cannot_open_what_its_twin_confirmed() -> None:
    """Signer 1's memory is copied. With the original the batch is confirmed; to the copy the cheater sends a wrong last
    value, and then its abort and agreeing views. Signer 3 has confirmed, so all that it ever signs is no abort."""
    confirmed, forked = court("presign", m=2), court("presign", m=2, alters={CHEATER: wrong_check})
    confirmed.run()
    assert [len(party.delivered) for party in confirmed.parties.values()] == [1, 1, 1]
    forked.cheat = lambda s, r, n, c: None if s == 3 and n in KINDS else c
    forked.run()
    assert confirmed.body(4, 3).ref == forked.body(4, 3).ref
    copy = forked.parties[1]
    assert isinstance(wire.decode(forked.body(STOP, 1).content[DIGEST_BYTES:], Stop), Stop)
    body = answer_of(confirmed, 3)
    copy.log.add(body.ref, body.content)
    copy.blame.receive(3, STOP)
    forked.deliver()
    forked.end()
    assert forked.opened() - {CHEATER} == set()


@pytest.mark.parametrize("twin", [1, 3])
def test_a_fork_that_is_told_of_a_confirmation_opens_nothing(twin: int) -> None:
    """The confirmation that a twin signed is with one other member alone, whose views name it to the fork too."""
    running = wrong_batch()
    running.start()
    confirmed = running.sign(twin, 5, BROADCAST, bytes(32) + wire.encode(presign.Confirmation(bytes(32))))
    running.parties[4 - twin].log.add(confirmed.ref, confirmed.content)
    running.deliver()
    running.end()
    assert no_seed(running)


def test_without_the_confirmation_the_same_members_open() -> None:
    """What the test above would look like if it proved nothing."""
    running = court("presign", m=2, alters={CHEATER: wrong_check})
    assert told(running, {CHEATER}) == BOTH
    assert running.opened() == {1, 2, 3}


def answer_of(confirmed: Court, j: int) -> SignedBody:
    """What an honest member that has confirmed says when a cheater calls it back."""
    stop = Stop("3.7", 4, 0, None, None, (), b"")
    call = confirmed.sign(CHEATER, STOP, BROADCAST, bytes(32) + wire.encode(stop))
    party = confirmed.parties[j]
    party.log.add(call.ref, call.content)
    party.blame.receive(CHEATER, STOP)
    body = confirmed.body(STOP, j)
    assert wire.decode(body.content[DIGEST_BYTES:], Stop).confirmation is not None
    return body


# --- what is kept ---


def test_a_confirmed_batch_keeps_no_content_and_no_sub_seed() -> None:
    running = court("presign", m=64)
    running.run()
    for party in running.parties.values():
        assert [body.round for body in party.log.bodies()] == [3, 3, 3, 5, 5, 5]
        assert party.blame._opener is None
        assert sum(len(wire.encode(ref)) for ref in party.log.broadcast_refs()) < 15 * 128


def test_what_a_sender_may_make_others_keep_is_bounded() -> None:
    log = court("presign").parties[1].log
    for number in range(200):
        body = SignedBody(number, CHEATER, BROADCAST, b"x", bytes(64))
        log.add(body.ref, body.content)
        log.add(msgspec.structs.replace(body, content=b"y").ref, b"y")
    assert len(log.bodies()) == 9
    assert len(log.conflicts) == 1


def test_outcomes_of_late_calls_are_verdicts_too() -> None:
    """A finished member that is called back by a wrong last body reports the culprit, and keeps what it delivered."""
    running = court("presign", m=2)
    running.cheat = lambda s, r, n, c: c[:-1] + bytes([c[-1] ^ 1]) if (s, r, n) == (CHEATER, 1, 5) else c
    assert told(running, {CHEATER}) == BOTH
    assert len(running.parties[3].delivered) == 1
    assert isinstance(running.parties[3].outcome, Outcome)


@pytest.mark.parametrize("name", ["setup", "keygen"])
def test_a_late_proof_shows_no_private_body(name: str) -> None:
    """In the last round seeds and shares are stored already. The cheater spoils it and then contradicts all that it
    sent: what convicts it is broadcast bodies alone."""
    running = court(name)
    last = len(running.rules.rounds)
    fewer = lambda m, r: msgspec.structs.replace(m, refs=tuple(ref for ref in m.refs if ref.sender != 1))  # noqa: E731
    lie = lying({VIEWS: fewer})

    def cheat(sender: int, receiver: int, number: int, content: bytes) -> bytes | None:
        if (sender, number) == (CHEATER, last):
            return bytes([content[0] ^ 1]) + content[1:]
        return lie(sender, receiver, number, content)

    running.cheat = cheat
    assert told(running, {CHEATER}) == BOTH
    for j in (1, 3):
        charges = running.parties[j].outcome.charges
        assert charges
        assert all(body.receiver == BROADCAST for charge in charges for body in charge.bodies)
