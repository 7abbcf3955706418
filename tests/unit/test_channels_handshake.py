"""The handshake: both ends get one key and know each other's boot; anything altered ends in `LinkFault`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from enclave.channels import handshake as h
from enclave.errors import LinkFault
from tests.fakes.identities import CLOCK_S, handshake, identity, roster, sign_as
from tests.fakes.mutations import BYTES, fields_of
from tests.fakes.network import seeded_random

SAID_S = CLOCK_S - 100.0  # less what has elapsed


def start(i: h.Identity | None = None, j: h.Identity | None = None) -> tuple[h.Initiator, h.Responder]:
    one, two = i or identity(1), j or identity(2)
    random = seeded_random("start")
    initiator = h.Initiator(one, two.me, random)
    return initiator, h.Responder(two, one.me, h.Open(initiator.hello), random)


def answer_of(responder: h.Responder, signer: int = 2, role: bytes = h.RESPONDER) -> h.Answer:
    return responder.answer(sign_as(signer, h.signing_digest(role, responder.transcript)))


def finish_of(initiator: h.Initiator, answer: h.Answer, signer: int = 1, role: bytes = h.INITIATOR) -> h.Finish:
    link, transcript = initiator.accept(answer)
    return initiator.finish(link, transcript, sign_as(signer, h.signing_digest(role, transcript)))


def test_both_ends_have_one_key_and_know_each_others_boot() -> None:
    i, j = identity(1), identity(2, epoch=5)
    ends = handshake(i, j)
    assert ends.initiators_link.key == ends.responders_link.key
    assert len(ends.initiators_link.key) == 32
    assert ends.initiators_link.peer == h.PeerSession(
        2, j.boot_nonce, j.frame_key, 5, j.chain(), j.boot_chain(), SAID_S
    )
    assert ends.responders_link.peer == h.PeerSession(
        1, i.boot_nonce, i.frame_key, 1, i.chain(), i.boot_chain(), SAID_S
    )
    assert ends.initiators_link.peer.digest() == h.session_digest(2, j.boot_nonce, j.frame_key)


def test_no_two_handshakes_share_a_key_even_with_the_same_nonces() -> None:
    keys = {handshake(identity(1), identity(2), seeded_random("same")).initiators_link.key for _ in range(4)}
    assert len(keys) == 4


def test_a_link_does_not_show_its_key() -> None:
    link = handshake(identity(1), identity(2)).initiators_link
    assert link.key.hex() not in repr(link)
    assert repr(link.key) not in repr(link)


# --- every field of every message, altered on the way ---

HELLO_FIELDS = [field.name for field in msgspec.structs.fields(h.Hello)]


def changed(hello: h.Hello, name: str) -> list[h.Hello]:
    value = getattr(hello, name)
    if isinstance(value, bytes):
        others: list[Any] = [BYTES["zeros"](value), value[:-1]]
        others += [BYTES["flip"](value), BYTES["ones"](value)] if value else [b"x"]
    elif isinstance(value, int):
        others = [value + 1, 3]
    else:
        others = [value + "x", ""]
    return [msgspec.structs.replace(hello, **{name: other}) for other in others if other != value]


def outcome(step: Callable[[], object]) -> object:
    """What the step returns, or (peer, reason) of the `LinkFault` it ends in."""
    try:
        return step()
    except LinkFault as fault:
        return (fault.peer, fault.reason)


# What a responder can see of a hello by itself; the rest shows in the transcript.
SEEN_AT_ONCE = {"suite", "roster_digest", "sender", "receiver"}


@pytest.mark.parametrize("name", HELLO_FIELDS)
def test_an_altered_open_gives_no_link(name: str) -> None:
    """Refused by the responder at once, or by the initiator, whose transcript differs."""
    initiator = h.Initiator(identity(1), 2, seeded_random("open"))
    altered = changed(initiator.hello, name)
    assert altered
    for hello in altered:
        made = outcome(lambda hello=hello: h.Responder(identity(2), 1, h.Open(hello), seeded_random("answer")))
        if isinstance(made, h.Responder):
            assert name not in SEEN_AT_ONCE
            answer = answer_of(made)
            refused = outcome(lambda answer=answer: initiator.accept(answer))
            assert refused == (2, "the identity signature does not verify")
        else:
            assert isinstance(made, tuple)
            assert made[0] == 1


@pytest.mark.parametrize("name", HELLO_FIELDS)
def test_an_altered_hello_in_the_answer_gives_no_link(name: str) -> None:
    initiator, responder = start()
    answer = answer_of(responder)
    for hello in changed(answer.hello, name):
        with pytest.raises(LinkFault) as caught:
            initiator.accept(msgspec.structs.replace(answer, hello=hello))
        assert caught.value.peer == 2
    assert initiator.accept(answer)


ANSWER_FIELDS = [".".join(path) for path, _ in fields_of(h.Answer) if path[0] != "hello"]
FINISH_FIELDS = [".".join(path) for path, _ in fields_of(h.Finish)]


def test_the_fields_are_all_there() -> None:
    assert set(ANSWER_FIELDS) == {"ciphertext", "signature", "confirmation"}
    assert set(FINISH_FIELDS) == {"transcript", "signature", "confirmation"}


@pytest.mark.parametrize("mutation", ["flip", "zeros", "ones"])
@pytest.mark.parametrize("name", ANSWER_FIELDS)
def test_an_altered_answer_gives_no_link(name: str, mutation: str) -> None:
    initiator, responder = start()
    answer = answer_of(responder)
    wrong = (
        "the key confirmation does not verify" if name == "confirmation" else "the identity signature does not verify"
    )
    with pytest.raises(LinkFault) as caught:
        initiator.accept(msgspec.structs.replace(answer, **{name: BYTES[mutation](getattr(answer, name))}))
    assert (caught.value.peer, caught.value.reason) == (2, wrong)
    assert initiator.accept(answer)


@pytest.mark.parametrize("mutation", ["flip", "zeros", "ones"])
@pytest.mark.parametrize("name", FINISH_FIELDS)
def test_an_altered_finish_gives_no_link(name: str, mutation: str) -> None:
    initiator, responder = start()
    finish = finish_of(initiator, answer_of(responder))
    wrong = {
        "transcript": "a finish of another handshake",
        "signature": "the identity signature does not verify",
        "confirmation": "the key confirmation does not verify",
    }[name]
    with pytest.raises(LinkFault) as caught:
        responder.accept(msgspec.structs.replace(finish, **{name: BYTES[mutation](getattr(finish, name))}))
    assert (caught.value.peer, caught.value.reason) == (1, wrong)
    assert responder.accept(finish)


# --- the wrong signer, role, roster ---


@pytest.mark.parametrize(("signer", "role"), [(1, h.RESPONDER), (3, h.RESPONDER), (4, h.RESPONDER), (2, h.INITIATOR)])
def test_an_answer_signed_by_another_or_in_another_role(signer: int, role: bytes) -> None:
    initiator, responder = start()
    with pytest.raises(LinkFault, match="identity signature"):
        initiator.accept(answer_of(responder, signer, role))


@pytest.mark.parametrize(("signer", "role"), [(2, h.INITIATOR), (3, h.INITIATOR), (4, h.INITIATOR), (1, h.RESPONDER)])
def test_a_finish_signed_by_another_or_in_another_role(signer: int, role: bytes) -> None:
    initiator, responder = start()
    with pytest.raises(LinkFault, match="identity signature"):
        responder.accept(finish_of(initiator, answer_of(responder), signer, role))


@pytest.mark.parametrize("foreign", [roster(keys=(1, 2, 4)), roster(network="other"), roster(keys=(2, 1, 3))])
def test_signers_with_different_rosters_refuse_each_other_and_say_why(foreign: Any) -> None:
    for i, j in ((identity(1, of=foreign), identity(2)), (identity(1), identity(2, of=foreign))):
        with pytest.raises(LinkFault, match=r"pins another roster \([0-9a-f]{16}…\) than ours \([0-9a-f]{16}…\)"):
            start(i, j)


def test_an_answer_with_another_roster_is_refused() -> None:
    initiator, responder = start()
    answer = answer_of(responder)
    hello = msgspec.structs.replace(answer.hello, roster_digest=roster(network="other").digest())
    with pytest.raises(LinkFault, match="pins another roster"):
        initiator.accept(msgspec.structs.replace(answer, hello=hello))


# --- reflection, replay ---


def test_a_reflected_open_is_refused() -> None:
    initiator = h.Initiator(identity(1), 2, seeded_random("open"))
    with pytest.raises(LinkFault, match="a hello from 1 to 2"):
        h.Responder(identity(1), 2, h.Open(initiator.hello), seeded_random("answer"))


def test_a_reflected_hello_in_an_answer_is_refused() -> None:
    initiator, responder = start()
    answer = msgspec.structs.replace(answer_of(responder), hello=initiator.hello)
    with pytest.raises(LinkFault, match="a hello from 1 to 2"):
        initiator.accept(answer)


def test_a_reflected_signature_and_confirmation_are_refused() -> None:
    """What the responder sent, sent back as the initiator's last message."""
    _, responder = start()
    answer = answer_of(responder)
    with pytest.raises(LinkFault, match="identity signature"):
        responder.accept(h.Finish(responder.transcript, answer.signature, answer.confirmation))
    # Even where one key signs both roles, the confirmations differ.
    signature = sign_as(1, h.signing_digest(h.INITIATOR, responder.transcript))
    with pytest.raises(LinkFault, match="key confirmation"):
        responder.accept(h.Finish(responder.transcript, signature, answer.confirmation))


def test_a_hello_meant_for_another_signer_is_refused() -> None:
    initiator = h.Initiator(identity(1), 3, seeded_random("open"))
    with pytest.raises(LinkFault, match="a hello from 1 to 3"):
        h.Responder(identity(2), 1, h.Open(initiator.hello), seeded_random("answer"))


def test_a_hello_of_another_sender_is_refused() -> None:
    initiator = h.Initiator(identity(1), 2, seeded_random("open"))
    with pytest.raises(LinkFault, match="a hello from 1 to 2"):
        h.Responder(identity(2), 3, h.Open(initiator.hello), seeded_random("answer"))


def test_replayed_messages_of_an_earlier_handshake_open_nothing() -> None:
    old_initiator, old_responder = start()
    old_answer = answer_of(old_responder)
    old_finish = finish_of(old_initiator, old_answer)
    # The old Open, to a responder of today: it answers, but the old finish is another handshake's.
    today = h.Responder(identity(2), 1, h.Open(old_initiator.hello), seeded_random("today"))
    with pytest.raises(LinkFault, match="a finish of another handshake"):
        today.accept(old_finish)
    forged = msgspec.structs.replace(old_finish, transcript=today.transcript)
    with pytest.raises(LinkFault, match="identity signature"):
        today.accept(forged)
    # The old answer, to an initiator of today.
    with pytest.raises(LinkFault, match="identity signature"):
        h.Initiator(identity(1), 2, seeded_random("start")).accept(old_answer)


# --- values chosen by a peer that signs them ---

SMALL_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


@pytest.mark.parametrize("key", SMALL_ORDER, ids=lambda key: key.hex()[:8])
def test_x25519_keys_of_small_order_are_refused_by_both(key: bytes) -> None:
    initiator, responder = start()
    hello = msgspec.structs.replace(initiator.hello, x25519=key)
    with pytest.raises(LinkFault, match="small order") as caught:
        h.Responder(identity(2), 1, h.Open(hello), seeded_random("answer"))
    assert caught.value.peer == 1
    answer = answer_of(responder)
    theirs = msgspec.structs.replace(answer.hello, x25519=key)
    transcript = h._transcript(initiator.hello, theirs, answer.ciphertext)
    signed = sign_as(2, h.signing_digest(h.RESPONDER, transcript))
    with pytest.raises(LinkFault, match="small order") as caught:
        initiator.accept(msgspec.structs.replace(answer, hello=theirs, signature=signed))
    assert caught.value.peer == 2


@pytest.mark.parametrize("kem_key", [b"\xff" * h.KEM_KEY_BYTES, b"\xff" * 384 + bytes(h.KEM_KEY_BYTES - 384)])
def test_an_encapsulation_key_out_of_range_is_refused(kem_key: bytes) -> None:
    initiator = h.Initiator(identity(1), 2, seeded_random("open"))
    hello = msgspec.structs.replace(initiator.hello, kem_key=kem_key)
    with pytest.raises(LinkFault, match="not an ML-KEM-768 encapsulation key"):
        h.Responder(identity(2), 1, h.Open(hello), seeded_random("answer"))


@pytest.mark.parametrize("change", [lambda k: b"", lambda k: k[:-1], lambda k: k + b"\0"])
def test_an_encapsulation_key_of_another_size_is_of_another_role(change: Callable[[bytes], bytes]) -> None:
    initiator = h.Initiator(identity(1), 2, seeded_random("open"))
    hello = msgspec.structs.replace(initiator.hello, kem_key=change(initiator.hello.kem_key))
    with pytest.raises(LinkFault, match="a hello of the wrong role"):
        h.Responder(identity(2), 1, h.Open(hello), seeded_random("answer"))


def test_a_signed_answer_with_another_ciphertext_fails_at_the_confirmation() -> None:
    """ML-KEM's implicit rejection: another secret, seen when the key is confirmed."""
    initiator, responder = start()
    answer = answer_of(responder)
    ciphertext = BYTES["flip"](answer.ciphertext)
    signature = sign_as(2, h.signing_digest(h.RESPONDER, h._transcript(initiator.hello, answer.hello, ciphertext)))
    with pytest.raises(LinkFault, match="key confirmation"):
        initiator.accept(msgspec.structs.replace(answer, ciphertext=ciphertext, signature=signature))


# --- the identity signature itself ---


def test_identity_signatures() -> None:
    message, key = b"m" * 32, roster().signer(1).identity_point
    signature = sign_as(1, message)
    assert h.verify_identity(key, message, signature)
    assert not h.verify_identity(key, b"n" * 32, signature)
    assert not h.verify_identity(roster().signer(2).identity_point, message, signature)
    for bad in (b"", bytes(64), signature[:-1], signature[::-1], b"\xff" * 64, signature[:32] + bytes(32)):
        assert not h.verify_identity(key, message, bad)
    for bad_key in (b"", bytes(65), key[:-1], b"\x04" + bytes(64), b"\x04" + b"\xff" * 64):
        assert not h.verify_identity(bad_key, message, signature)


def test_a_signature_with_a_byte_more_is_no_signature() -> None:
    message, key = b"m" * 32, roster().signer(1).identity_point
    signature = sign_as(1, message)
    assert not h.verify_identity(key, message, signature[:32] + b"\0" + signature[32:])


# --- SPEC 7.8: clocks ---


class Seconds:
    """A clock that a test moves."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class TwoHosts:
    """Signers 1 and 2, each with a wall clock of its own; the same time passes at both."""

    def __init__(self) -> None:
        self.walls = {1: Seconds(CLOCK_S), 2: Seconds(CLOCK_S + 7)}
        self.elapsed = {1: Seconds(100.0), 2: Seconds(5000.0)}
        self.ends = {j: identity(j, wall=self.walls[j], elapsed=self.elapsed[j]) for j in (1, 2)}

    def passes(self, seconds: float) -> None:
        for clock in (*self.walls.values(), *self.elapsed.values()):
            clock.now_s += seconds

    def behind(self, link: h.Link, me: int) -> float:
        """How far behind the peer's clock is what `me` knows of it."""
        return self.walls[link.peer.index]() - (link.peer.clock_s + self.elapsed[me]())


@pytest.mark.parametrize("late_s", [(0, 0, 0), (20, 0, 0), (0, 20, 0), (0, 0, 900), (15, 15, 15)])
def test_what_is_known_of_a_peers_clock_is_never_ahead_and_30_s_behind_at_most(late_s: tuple[int, int, int]) -> None:
    hosts = TwoHosts()
    initiator = h.Initiator(hosts.ends[1], 2, seeded_random("late"))
    hosts.passes(late_s[0])
    responder = h.Responder(hosts.ends[2], 1, h.Open(initiator.hello), seeded_random("late"))
    answer = answer_of(responder)
    hosts.passes(late_s[1])
    link, transcript = initiator.accept(answer)
    finish = initiator.finish(link, transcript, sign_as(1, h.signing_digest(h.INITIATOR, transcript)))
    hosts.passes(late_s[2])
    theirs = responder.accept(finish)
    # However long a link lasts.
    for _ in range(2):
        assert hosts.behind(link, 1) == pytest.approx(late_s[1], abs=0.001)
        assert hosts.behind(theirs, 2) == pytest.approx(late_s[0], abs=0.001)
        hosts.passes(99_999)


def test_an_answer_to_a_hello_that_is_too_old_gives_no_link() -> None:
    """Else the peer, which gets our finish, could not know how old our clock is."""
    hosts = TwoHosts()
    initiator = h.Initiator(hosts.ends[1], 2, seeded_random("late"))
    responder = h.Responder(hosts.ends[2], 1, h.Open(initiator.hello), seeded_random("late"))
    hosts.passes(30.5)
    assert outcome(lambda: initiator.accept(answer_of(responder))) == (2, "an answer that took 30 s")


def test_a_clock_before_1970_is_told_as_1970() -> None:
    hosts = TwoHosts()
    hosts.walls[1].now_s = -5.0
    assert h.Initiator(hosts.ends[1], 2, seeded_random("early")).hello.clock_ms == 0
