"""Frames of a ceremony: whatever happens to them on the way is the link's fault, and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from enclave.bodies import BROADCAST, BodyLog, SignedBody, body_digest
from enclave.channels import frames as f
from enclave.errors import LinkFault
from tests.fakes.identities import frame_keys

CONTEXT, OTHER = b"C" * 32, b"D" * 32
PRIVATE = frozenset({2})
LINK_KEYS = {frozenset(pair): bytes([10 * pair[0] + pair[1]]) * 32 for pair in ((1, 2), (1, 3), (2, 3))}


def channel(me: int, context: bytes = CONTEXT, boot: int = 0, links: dict | None = None) -> f.CeremonyChannel:
    keys = links or LINK_KEYS
    peers = [f.ceremony_keys(keys[frozenset((me, j))], context, me, j, frame_keys(j)[0]) for j in (1, 2, 3) if j != me]
    return f.CeremonyChannel(context, me, frame_keys(me, boot)[1], peers, PRIVATE, BodyLog(8))


def what_is_signed(context: bytes, number: int, sender: int, receiver: int | None, content: bytes) -> bytes:
    """What a sender signs of a body."""
    return body_digest(context, SignedBody(number, sender, receiver or BROADCAST, content, b"").ref)


def one_frame(sender: f.CeremonyChannel, to: int = 2, number: int = 1, content: bytes = b"content") -> bytes:
    ((receiver, frame),) = sender.seal(number, (to,), number in PRIVATE, content)
    assert receiver == to
    return frame


def refused(receiver: f.CeremonyChannel, sender: int, frame: bytes) -> str:
    """The reason of the `LinkFault` that opening this frame ends in; it names the link's peer."""
    with pytest.raises(LinkFault) as caught:
        receiver.open(sender, frame)
    assert caught.value.peer == sender
    return caught.value.reason


@pytest.mark.parametrize("content", [b"", b"x", b"content" * 1000])
def test_a_body_arrives_as_it_was(content: bytes) -> None:
    one, two, three = channel(1), channel(2), channel(3)
    for number in (1, 1, 3, 255):
        sealed = dict(one.seal(number, (2, 3), False, content))
        assert two.open(1, sealed[2]) == (number, content)
        assert three.open(1, sealed[3]) == (number, content)
    assert two.open(1, one_frame(one, 2, 2, content)) == (2, content)
    assert one.open(2, one_frame(two, 1, 1, content)) == (1, content)


def test_the_header_is_what_it_says() -> None:
    frame = one_frame(channel(1))
    assert struct.unpack(">cB32sBBBQ", frame[: f.HEADER_BYTES]) == (b"\x02", 1, CONTEXT, 1, 1, 2, 0)
    assert len(frame) == f.HEADER_BYTES + 64 + 7 + 16
    assert f.frame_context(frame) == CONTEXT


def test_the_content_is_nowhere_in_the_frame() -> None:
    assert b"content" not in one_frame(channel(1))


def test_a_broadcast_is_signed_once_for_all_receivers() -> None:
    """The same signature and content in every frame: two different bodies convict their sender."""
    sealed = dict(channel(1).seal(1, (2, 3), False, b"content"))
    plain = {
        j: channel(j)._receive[1].decrypt(bytes(12), frame[f.HEADER_BYTES :], frame[: f.HEADER_BYTES])
        for j, frame in sealed.items()
    }
    assert plain[2] == plain[3]
    what = what_is_signed(CONTEXT, 1, 1, BROADCAST, b"content")
    assert f.verify_digest(frame_keys(1)[0], what, plain[2][:64])
    assert sealed[2][f.HEADER_BYTES :] != sealed[3][f.HEADER_BYTES :]


def test_every_flipped_bit_is_the_links_fault() -> None:
    frame, receiver = one_frame(channel(1)), channel(2)
    for bit in range(8 * len(frame)):
        altered = bytearray(frame)
        altered[bit // 8] ^= 1 << bit % 8
        refused(receiver, 1, bytes(altered))
    # None of these moved the counter: the frame itself still opens.
    assert receiver.open(1, frame) == (1, b"content")


@pytest.mark.parametrize("size", [0, 1, 2, 34, f.HEADER_BYTES, f.HEADER_BYTES + 63])
def test_frames_too_short(size: int) -> None:
    frame = one_frame(channel(1))[:size]
    assert refused(channel(2), 1, frame) == "a frame shorter than its header"
    with pytest.raises(LinkFault):
        f.frame_context(frame)


@pytest.mark.parametrize("size", [f.HEADER_BYTES + 64, f.HEADER_BYTES + 80, -1])
def test_frames_cut_short(size: int) -> None:
    assert refused(channel(2), 1, one_frame(channel(1))[:size]) == "a frame does not decrypt"


def test_a_frame_with_a_byte_more() -> None:
    assert refused(channel(2), 1, one_frame(channel(1)) + b"\0") == "a frame does not decrypt"


def test_a_repeat_a_gap_and_a_swap() -> None:
    one, two = channel(1), channel(2)
    first, second, third = (one_frame(one) for _ in range(3))
    assert refused(two, 1, second) == "frame 1 where 0 was due"
    two.open(1, first)
    assert refused(two, 1, first) == "frame 0 where 1 was due"
    assert refused(two, 1, third) == "frame 2 where 1 was due"
    two.open(1, second)
    two.open(1, third)


def test_a_forged_counter() -> None:
    one, two = channel(1), channel(2)
    one_frame(one)
    late = one_frame(one)
    header = struct.pack(">cB32sBBBQ", b"\x02", 1, CONTEXT, 1, 1, 2, 0)
    assert refused(two, 1, header + late[f.HEADER_BYTES :]) == "a frame does not decrypt"


def test_counters_are_per_receiver_and_direction() -> None:
    one, two, three = channel(1), channel(2), channel(3)
    one_frame(one, 2)
    assert three.open(1, one_frame(one, 3)) == (1, b"content")
    assert one.open(2, one_frame(two, 1)) == (1, b"content")


def test_swapped_sender_and_receiver() -> None:
    frame = one_frame(channel(1), 2)
    assert refused(channel(2), 3, frame) == "a frame from 1 to 2"
    assert refused(channel(3), 1, frame) == "a frame from 1 to 2"
    # Back to its sender, as if the receiver had sent it.
    assert refused(channel(1), 2, frame) == "a frame from 1 to 2"
    forged = bytearray(frame)
    forged[35], forged[36] = 2, 1
    assert refused(channel(1), 2, bytes(forged)) == "a frame does not decrypt"


@pytest.mark.parametrize("sender", [0, 2, 4, 255])
def test_a_sender_that_is_no_peer(sender: int) -> None:
    assert refused(channel(2), sender, one_frame(channel(1))) == "not a member of this ceremony"


def test_a_frame_of_another_ceremony() -> None:
    """As it is, and with its header rewritten to ours: keys are derived from the context."""
    frame = one_frame(channel(1, OTHER))
    assert f.frame_context(frame) == OTHER
    assert refused(channel(2), 1, frame) == "a frame of another ceremony or version"
    assert refused(channel(2), 1, frame[:2] + CONTEXT + frame[34:]) == "a frame does not decrypt"


@pytest.mark.parametrize(("place", "value"), [(0, 0), (0, 1), (0, 3), (1, 0), (1, 2), (1, 255)])
def test_another_kind_or_version(place: int, value: int) -> None:
    frame = bytearray(one_frame(channel(1)))
    frame[place] = value
    assert refused(channel(2), 1, bytes(frame)) == "a frame of another ceremony or version"


def test_a_frame_of_another_link() -> None:
    other = {**LINK_KEYS, frozenset((1, 2)): b"L" * 32}
    assert refused(channel(2), 1, one_frame(channel(1, links=other))) == "a frame does not decrypt"


def resealed(plaintext: bytes, number: int = 1, sender: int = 1, receiver: int = 2) -> bytes:
    """A frame with any plaintext, by somebody who has the link's key."""
    return channel(sender)._seal_one(number, receiver, plaintext)


def signed(content: bytes, number: int = 1, sender: int = 1, to: int | None = None, context: bytes = CONTEXT) -> bytes:
    return f.sign_digest(frame_keys(sender)[1], what_is_signed(context, number, sender, to, content)) + content


WRONG_BODIES: dict[str, Callable[[], bytes]] = {
    "a frame key of another boot": lambda: one_frame(channel(1, boot=1)),
    "a signature by the receiver": lambda: resealed(signed(b"content", sender=2)),
    "of another sender": lambda: resealed(
        f.sign_digest(frame_keys(1)[1], what_is_signed(CONTEXT, 1, 3, BROADCAST, b"content")) + b"content"
    ),
    "another content": lambda: resealed(signed(b"content")[:64] + b"contend"),
    "another round": lambda: resealed(signed(b"content", number=3)),
    "another ceremony": lambda: resealed(signed(b"content", context=OTHER)),
    "a broadcast that names a receiver": lambda: resealed(signed(b"content", to=2)),
    "a private body without a receiver": lambda: resealed(signed(b"content", number=2), number=2),
    "a private body for another": lambda: resealed(signed(b"content", number=2, to=3), number=2),
    "no signature": lambda: resealed(bytes(64) + b"content"),
}


@pytest.mark.parametrize("name", WRONG_BODIES)
def test_bodies_that_decrypt_and_are_not_signed_as_they_must_be(name: str) -> None:
    assert refused(channel(2), 1, WRONG_BODIES[name]()) == "a body's signature does not verify"


@pytest.mark.parametrize("size", [0, 1, 48, 63])
def test_plaintexts_shorter_than_a_signature(size: int) -> None:
    """By a peer that has the key: still the link's fault, whatever the reason given."""
    refused(channel(2), 1, resealed(bytes(size)))


def test_a_right_private_body_opens() -> None:
    assert channel(2).open(1, resealed(signed(b"content", number=2, to=2), number=2)) == (2, b"content")


def test_keys_of_both_directions_and_ceremonies_differ() -> None:
    here = f.ceremony_keys(b"k" * 32, CONTEXT, 1, 2, bytes(32))
    there = f.ceremony_keys(b"k" * 32, CONTEXT, 2, 1, bytes(32))
    elsewhere = f.ceremony_keys(b"k" * 32, OTHER, 1, 2, bytes(32))
    assert (here.send_key, here.receive_key) == (there.receive_key, there.send_key)
    assert len({here.send_key, here.receive_key, elsewhere.send_key, elsewhere.receive_key}) == 4
    assert here.send_key.hex() not in repr(here)
    assert "send_key" not in repr(here)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32), b"\xff" * 32])
@pytest.mark.parametrize("signature", [b"", bytes(64), b"\xff" * 64, bytes(65)])
def test_verification_never_raises(key: bytes, signature: bytes) -> None:
    assert f.verify_digest(key, b"m" * 32, signature) is False
