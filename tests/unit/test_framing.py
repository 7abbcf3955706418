"""Messages over a stream socket: what is cut is put together, what is queued leaves together, both within bounds."""

from __future__ import annotations

import socket

import pytest

from enclave.errors import Malformed
from enclave.framing import FLUSH_BYTES, Stream

MESSAGES = [b"", b"a", b"bc" * 500, b"d" * 100_000, b"e"]


@pytest.fixture
def ends() -> tuple[Stream, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return Stream(ours, 4 * FLUSH_BYTES), theirs


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(4, "big") + message for message in messages)


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 7, 1000, 60_000, 10**6])
def test_what_arrives_in_pieces(ends: tuple[Stream, socket.socket], cut: int) -> None:
    stream, peer = ends
    data, found = framed(*MESSAGES[:3]) if cut < 1000 else framed(*MESSAGES), list[bytes]()
    for start in range(0, len(data), cut):
        peer.setblocking(True)
        peer.sendall(data[start : start + cut])
        # More than one call takes.
        found += [*stream.read(), *stream.read()]
    assert found == MESSAGES[: len(found)]
    assert len(found) == (3 if cut < 1000 else 5)


def test_messages_before_an_oversized_one_are_handled(ends: tuple[Stream, socket.socket]) -> None:
    stream, peer = ends
    peer.sendall(framed(b"one", b"two") + b"\xff\xff\xff\xff")
    reading = stream.read()
    assert [next(reading), next(reading)] == [b"one", b"two"]
    with pytest.raises(Malformed, match="exceeds"):
        next(reading)


def test_what_is_queued_leaves_together(ends: tuple[Stream, socket.socket]) -> None:
    stream, peer = ends
    for number in range(100):
        stream.queue(b"%d" % number)
    with pytest.raises(BlockingIOError):
        peer.recv(1)
    assert stream.waiting == 100
    stream.flush()
    assert (stream.waiting, stream.wants_to_write) == (0, False)
    assert peer.recv(10**6) == framed(*(b"%d" % number for number in range(100)))


def test_a_lot_does_not_wait_for_the_flush(ends: tuple[Stream, socket.socket]) -> None:
    stream, peer = ends
    stream.queue(bytes(FLUSH_BYTES))
    assert len(peer.recv(10**6)) > 0


def test_everything_arrives_where_little_fits_at_once(ends: tuple[Stream, socket.socket]) -> None:
    stream, peer = ends
    messages = [bytes([number]) * (number * 1000) for number in range(40)]
    for message in messages:
        stream.queue(message)
    received = bytearray()
    while stream.wants_to_write or len(received) < len(framed(*messages)):
        stream.flush()
        received += peer.recv(5_000)
    assert bytes(received) == framed(*messages)


def test_a_peer_that_does_not_read_is_cut_off(ends: tuple[Stream, socket.socket]) -> None:
    stream, _ = ends

    def talk() -> None:
        for _ in range(100):
            stream.queue(bytes(FLUSH_BYTES // 4))

    with pytest.raises(EOFError, match="does not read"):
        talk()
