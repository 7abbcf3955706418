"""Attacks on the rounds that no single altered field shows: order, views, encodings, and chosen wrong values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from enclave.protocol import keygen, presign, setup
from enclave.protocol.session import RoundMessage, Session
from enclave.tasks import Promise
from enclave.wire import encode
from policies.transcript import DIGEST_BYTES
from tests.fakes.network import seeded_random
from tests.fakes.rounds import (
    CHEATER,
    ROSTER_DIGEST,
    Ceremony,
    committed_opening,
    honest,
    keygen_ceremony,
    on_the_way,
    presign_ceremony,
    replaced,
    rewrite,
    seen,
    setup_ceremony,
)

ROUNDS = [
    (name, number)
    for name, make in (("setup", setup_ceremony), ("keygen", keygen_ceremony), ("presign", presign_ceremony))
    for number in range(1, len(make().rounds) + 1)
]
MAKE: dict[str, Callable[[], Ceremony]] = {
    "setup": setup_ceremony,
    "keygen": keygen_ceremony,
    "presign": presign_ceremony,
}


# --- SPEC 0.6: encodings ---


def wider(content: bytes) -> bytes:
    """The same message in a longer msgpack encoding of its outer array: valid msgpack, not canonical."""
    view, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    assert 0x90 <= body[0] <= 0x9F
    return view + b"\xdc\0" + bytes([body[0] & 0x0F]) + body[1:]


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda content: b"",
    "half a view": lambda content: content[: DIGEST_BYTES - 1],
    "a view alone": lambda content: content[:DIGEST_BYTES],
    "cut short": lambda content: content[:-1],
    "trailing byte": lambda content: content + b"\0",
    "not msgpack": lambda content: content[:DIGEST_BYTES] + b"\xc1",
    "a map": lambda content: content[:DIGEST_BYTES] + b"\x80",
    "nil": lambda content: content[:DIGEST_BYTES] + b"\xc0",
    "nested deep": lambda content: content[:DIGEST_BYTES] + b"\x91" * 100_000,
    "one field more": lambda content: (
        content[:DIGEST_BYTES] + bytes([content[DIGEST_BYTES] + 1]) + content[DIGEST_BYTES + 1 :] + b"\xc0"
    ),
    "longer encoding": wider,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("name", "number"), ROUNDS)
def test_what_is_no_canonical_message_names_its_sender(name: str, number: int, encoding: str) -> None:
    outcomes = on_the_way(MAKE[name](), number, ENCODINGS[encoding])
    assert outcomes == {1: ("0.6", (CHEATER,), ()), 3: ("0.6", (CHEATER,), ())}


@pytest.mark.parametrize(("name", "number"), ROUNDS)
def test_another_rounds_message_in_this_round(name: str, number: int) -> None:
    """Types with one common encoding exist (a digest is a digest), so here: with another number of fields."""
    ceremony = MAKE[name]()
    other = keygen.Opening(bytes(32), ()) if name != "keygen" or number != 2 else keygen.Commitment(bytes(32))
    change = lambda content: content[:DIGEST_BYTES] + encode(other)  # noqa: E731
    expected = ("0.6", (CHEATER,), ())
    assert on_the_way(ceremony, number, change) == {1: expected, 3: expected}


# --- SPEC 0.5, 0.6: views and order ---


@pytest.mark.parametrize("to", [0, 1])
@pytest.mark.parametrize(("name", "number"), ROUNDS)
def test_a_wrong_view_names_nobody(name: str, number: int, to: int) -> None:
    ceremony = MAKE[name]()
    change = lambda content: bytes([content[0] ^ 1]) + content[1:]  # noqa: E731
    spared = "ok" if number == len(ceremony.rounds) else None
    outcomes = on_the_way(ceremony, number, change, to)
    assert outcomes == {1: ("0.5", (), ()), 3: ("0.5", (), ()) if to == 0 else spared}


def deliver(ceremony: Ceremony, event: Callable[[Session, int, int, int, bytes], bool]) -> dict[int, Any]:
    """Run with `event(session, sender, receiver, round, content)` before each delivery; False withholds the body."""
    network = ceremony.network()

    def tamper(sender: int, receiver: int, number: int, content: bytes) -> bytes | None:
        return content if event(network.sessions[receiver], sender, receiver, number, content) else None

    return honest(network.run(ceremony.start, tamper))


@pytest.mark.parametrize(("name", "number"), ROUNDS)
def test_a_repeated_body_names_its_sender(name: str, number: int) -> None:
    """The same bytes again are a fault too. Signer 3 is silent, so that even the last round is still waited for."""

    def event(session: Session, sender: int, receiver: int, at: int, content: bytes) -> bool:
        if (sender, at) == (CHEATER, number):
            session.receive(sender, at, content)
        return sender != 3 or at < number

    assert deliver(MAKE[name](), event)[1] == ("0.6", (CHEATER,), ())


@pytest.mark.parametrize(("name", "number"), ROUNDS)
@pytest.mark.parametrize("claimed", [0, -1, +1, 255])
def test_a_round_out_of_order_names_its_sender(name: str, number: int, claimed: int) -> None:
    wrong = claimed if claimed in (0, 255) else number + claimed

    def event(session: Session, sender: int, receiver: int, at: int, content: bytes) -> bool:
        if (sender, at) == (CHEATER, number):
            session.receive(sender, wrong, content)
            return False
        return True

    assert deliver(MAKE[name](), event) == {1: ("0.6", (CHEATER,), ()), 3: ("0.6", (CHEATER,), ())}


@pytest.mark.parametrize(("name", "number"), [each for each in ROUNDS if (each[0], each[1] + 1) in ROUNDS])
def test_a_left_out_round_names_its_sender(name: str, number: int) -> None:
    """Above the channel a gap is the sender's: on the way, a lost frame breaks the counter, and is the link's."""
    network = MAKE[name]().network()
    outcomes = network.run(MAKE[name]().start, lambda s, r, n, c: None if (s, n) == (CHEATER, number) else c)
    assert honest(outcomes) == {1: ("0.6", (CHEATER,), ()), 3: ("0.6", (CHEATER,), ())}


@pytest.mark.parametrize(("name", "number"), ROUNDS)
def test_a_silent_member_is_the_one_the_others_wait_for(name: str, number: int) -> None:
    ceremony = MAKE[name]()
    network = ceremony.network()
    outcomes = network.run(ceremony.start, lambda s, r, n, c: None if s == CHEATER and n >= number else c)
    assert honest(outcomes) == {1: None, 3: None}
    assert {j: network.sessions[j].missing() for j in (1, 3)} == {1: (CHEATER,), 3: (CHEATER,)}


def test_a_fault_seen_while_storing_is_not_forgotten() -> None:
    """Signer 2 repeats its last body while signer 1 is busy with its store: SPEC 0.6 names it all the same."""
    ceremony = setup_ceremony()
    waiting: Promise[None] = Promise()

    async def install(seeds: setup.Seeds) -> None:
        await waiting

    network = ceremony.network()
    random = seeded_random("setup/3/1/1")

    def start(session: Session) -> Any:
        return (
            setup.setup(session, 1, 1, ROSTER_DIGEST, random, install) if session.me == 1 else ceremony.start(session)
        )

    last = len(ceremony.rounds)
    kept: dict[int, bytes] = {}

    def tamper(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if receiver == 1 and number == last:
            kept[sender] = content
            if len(kept) == 2:
                # Both have arrived with this one: repeat signer 2's, then let the store answer.
                network.sessions[1].receive(sender, number, content)
                network.sessions[1].receive(CHEATER, number, kept[CHEATER])
                waiting.resolve(None)
        return content

    assert seen(network.run(start, tamper)[1]) == ("0.6", (CHEATER,), ())


def test_rounds_ahead_of_time_are_kept_and_bounded() -> None:
    """A cheater may send all its rounds at once; the inbox holds one body a round, and a seventh is refused."""
    ceremony = presign_ceremony()
    session = Session(ceremony.context, 1, ceremony.members, ceremony.rounds, lambda *body: None)
    bodies = [presign.Products((), b"", b""), presign.CheckProducts(b""), presign.Challenges(bytes(32), bytes(32))]
    bodies += [presign.Openings(bytes(32), b"", b""), presign.Confirmation(bytes(32))]
    for number, body in enumerate(bodies, 1):
        session.receive(3, number, bytes(32) + encode(body))
    assert len(session._inbox) == len(ceremony.rounds)
    session.receive(3, 6, bytes(32) + encode(bodies[-1]))
    assert len(session._inbox) == len(ceremony.rounds)
    assert seen(session._fault) == ("0.6", (3,), ())


# --- Split views: a broadcast that is different, and right by itself, for each receiver ---


def test_two_openings_each_with_its_commitment_end_at_the_views() -> None:
    commitment, opening = committed_opening(lambda opening: msgspec.structs.replace(opening, nonce=bytes(32)))
    other = {1: commitment, 2: opening}

    def tamper(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if (sender, receiver) == (CHEATER, 1) and number in other:
            return rewrite(content, type(other[number]), lambda message: other[number])
        return content

    assert honest(keygen_ceremony().run(CHEATER, tamper=tamper)) == {1: ("0.5", (), ()), 3: ("0.5", (), ())}


def test_a_cheater_that_shows_each_the_view_it_expects_is_found_by_the_honest_ones() -> None:
    """Split first round, and the cheater's later views forged so that each receiver sees its own: 1 and 3 still
    compare with each other."""
    ceremony = presign_ceremony()
    views: dict[int, bytes] = {}

    def tamper(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if sender == CHEATER and receiver == 1 and number == 1:
            changed = lambda m: msgspec.structs.replace(m, e_w=m.e_w[:-1] + bytes([m.e_w[-1] ^ 1]))  # noqa: E731
            return rewrite(content, presign.Products, changed)
        if sender == 1:
            views[number] = content[:DIGEST_BYTES]
        if sender == CHEATER and receiver == 1 and number in views:
            return views[number] + content[DIGEST_BYTES:]
        return content

    assert honest(ceremony.run(CHEATER, tamper=tamper)) == {1: ("0.5", (), ()), 3: ("0.5", (), ())}


# --- Replays from another context ---


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("with_view", [False, True])
def test_a_body_of_another_batch_is_of_no_use(number: int, with_view: bool) -> None:
    """The cheater's body of the same round of another `sid`; with its old view, and with the view it ought to have."""
    other: dict[int, bytes] = {}

    def look(sender: int, receiver: int, at: int, content: bytes) -> bytes:
        if sender == CHEATER:
            other[at] = content
        return content

    presign_ceremony(sid=b"O" * 32).run(tamper=look)
    kind = presign.ROUNDS[number - 1]
    replayed = msgspec.msgpack.decode(other[number][DIGEST_BYTES:], type=kind)
    ceremony = presign_ceremony()
    if with_view:
        outcomes = honest(ceremony.run(CHEATER, replaced(replayed)))
        expected = {
            1: ("3.3", (), (1, 2)),
            2: ("3.7", (), ()),
            3: ("3.5", (), ()),
            4: ("3.7", (), ()),
            5: ("3.9", (), ()),
        }[number]
        # The first group in which the commitments disagree is named, with the cheater in it.
        assert outcomes == {1: expected, 3: expected}
    else:
        assert on_the_way(ceremony, number, lambda content: other[number]) == {1: ("0.5", (), ()), 3: ("0.5", (), ())}


def test_commitments_of_another_setup_are_of_no_use() -> None:
    """The same contributions (the randomness is seeded), committed to in another context: they open nothing here."""
    recorded: list[RoundMessage] = []

    def keep(message: RoundMessage, receiver: int | None) -> RoundMessage:
        recorded.append(message)
        return message

    replace(setup_ceremony(), context=b"E" * 32).run(CHEATER, keep)
    outcomes = honest(setup_ceremony().run(CHEATER, replaced(recorded[0])))
    assert outcomes == {1: ("1.2", (CHEATER,), ()), 3: ("1.2", (CHEATER,), ())}
