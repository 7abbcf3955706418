"""SPEC 0.7, the rules alone: which states of a peer are taken, which are refused, and what an operator can accept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from enclave.audit import ChainEnd
from enclave.channels.handshake import PeerSession
from enclave.errors import Cloned, LinkFault, RolledBack
from enclave.peers import KEPT_BOOTS, PeerBook, PeersRecord, SeenPeer
from enclave.wire import decode, encode
from policies.acceptance import AcceptedState
from tests.fakes.identities import roster

PEER = 2
ACCEPT_2_AT_7 = "run: keymoot enclave accept-rollback signer-2 --version 7 --boot 4343434343434343"


def end(version: int, fork: int = 0) -> ChainEnd:
    return ChainEnd(version, bytes([fork]) * 30 + version.to_bytes(2, "big"))


def boot(letter: str) -> bytes:
    return letter.encode() * 32


class Desk:
    """A book, what it wants kept, and what it told."""

    def __init__(self) -> None:
        self.accepted: list[AcceptedState] = []
        self.changes = 0
        self.notices: list[tuple[str, int, int, str]] = []
        self.book = PeerBook(roster(), lambda: self.accepted, self.change, self.notice)

    def change(self) -> None:
        self.changes += 1

    def notice(self, event: str, peer: int, seen: SeenPeer) -> None:
        self.notices.append((event, peer, seen.version, seen.boot.decode()[0]))

    def admit(
        self,
        letter: str,
        chain: ChainEnd,
        start: ChainEnd | None = None,
        before: Any = "now",
        answered: bool = True,
        peer: int = PEER,
    ) -> None:
        """A verified handshake of boot `letter`. `before`: what was known at our hello, by default what is now."""
        known = self.book.seen(peer) if before == "now" else before
        session = PeerSession(peer, boot(letter), b"f" * 32, 1, chain, start or chain, 0.0)
        self.book.admit(session, known, answered)


@pytest.fixture
def desk() -> Desk:
    """Signer 2 was seen in boot A, which showed state 10."""
    made = Desk()
    made.admit("A", end(10), end(5))
    return made


def seen(desk: Desk) -> tuple[str, int, str]:
    known = desk.book.seen(PEER)
    assert known is not None
    return known.boot.decode()[0], known.version, known.bar


def test_the_first_sight_is_believed_and_kept(desk: Desk) -> None:
    assert seen(desk) == ("A", 10, "")
    assert desk.changes == 1
    assert desk.book.seen(3) is None
    assert desk.notices == []


def test_a_boot_that_goes_on_is_followed(desk: Desk) -> None:
    desk.admit("A", end(12), end(5))
    desk.book.on_told(PEER, boot("A"), desk.book.seen(PEER), end(13))
    desk.admit("A", end(13), end(5))
    assert seen(desk) == ("A", 13, "")
    assert desk.changes == 3  # nothing new was said the last time


@pytest.mark.parametrize("start", [10, 11, 500])
def test_a_restart_at_or_above_what_was_seen_is_taken(desk: Desk, start: int) -> None:
    desk.admit("B", end(start + 1), end(start))
    assert seen(desk) == ("B", start + 1, "")


def test_a_restart_below_what_was_seen_is_refused_with_the_command_that_accepts_it(desk: Desk) -> None:
    for _ in range(3):
        with pytest.raises(RolledBack) as refused:
            desk.admit("C", end(9), end(7))
        assert refused.value.rule == "rolled-back"
        assert "state 7, below 10" in refused.value.reason
        assert refused.value.reason.endswith(ACCEPT_2_AT_7)
    assert seen(desk) == ("A", 10, "")
    assert desk.book.refused == {PEER: "rolled-back"}
    assert desk.notices == [("peer-rolled-back", PEER, 7, "C")]


def test_a_boot_that_grew_past_what_was_seen_is_judged_by_where_it_began(desk: Desk) -> None:
    """A disk put back, and decisions made on it before it shows itself to anybody."""
    with pytest.raises(RolledBack):
        desk.admit("C", end(1000), end(9))


def test_a_fork_at_the_same_state_is_refused(desk: Desk) -> None:
    with pytest.raises(RolledBack, match="another audit head at state 10"):
        desk.admit("C", end(10, fork=1))
    with pytest.raises(RolledBack, match="or another audit head"):
        desk.admit("A", end(10, fork=1), end(5))


def test_an_accepted_state_serves_its_boot_alone_and_once(desk: Desk) -> None:
    for wrong in (("signer-3", 7, "43" * 8), ("signer-2", 8, "43" * 8), ("signer-2", 7, "44" * 8)):
        desk.accepted = [AcceptedState(*wrong)]
        with pytest.raises(RolledBack):
            desk.admit("C", end(8), end(7))
    desk.accepted = [AcceptedState("signer-2", 7, "43" * 8)]
    desk.admit("C", end(8), end(7))
    assert seen(desk) == ("C", 8, "")
    assert desk.book.refused == {}
    assert desk.notices[-1] == ("peer-accepted", PEER, 7, "C")
    # It goes on from there, and the next roll-back is another one, also to the same state.
    desk.admit("C", end(20), end(7))
    with pytest.raises(RolledBack):
        desk.admit("D", end(7))
    assert seen(desk) == ("C", 20, "")


def test_memory_put_back_is_noticed_and_cured_by_a_restart(desk: Desk) -> None:
    """A machine's image resumed: the same boot with a lower state, in an answer to a hello of ours."""
    with pytest.raises(RolledBack, match="its memory was put back, or it runs twice"):
        desk.admit("A", end(9), end(5))
    # It stays refused, whatever it shows afterwards.
    with pytest.raises(RolledBack):
        desk.admit("A", end(30), end(5))
    assert seen(desk) == ("A", 10, "rewound")
    desk.admit("B", end(11), end(10))
    assert seen(desk) == ("B", 11, "")
    assert [notice[0] for notice in desk.notices] == ["peer-rewound"]


def test_a_lower_state_of_the_same_boot_that_came_late_says_nothing(desk: Desk) -> None:
    """The initiator's hello may be older than what its links have told since; so may what was known at our hello."""
    desk.admit("A", end(9), end(5), answered=False)
    older = desk.book.seen(PEER)
    desk.admit("A", end(30), end(5))
    desk.admit("A", end(20), end(5), before=older)
    desk.book.on_told(PEER, boot("A"), older, end(20))
    assert seen(desk) == ("A", 30, "")


def test_a_told_state_below_what_was_known_when_the_link_began_is_refused(desk: Desk) -> None:
    with pytest.raises(RolledBack):
        desk.book.on_told(PEER, boot("A"), desk.book.seen(PEER), end(9))
    assert seen(desk) == ("A", 10, "rewound")


def test_two_boots_at_a_time_are_both_refused_until_an_accepted_third(desk: Desk) -> None:
    desk.admit("B", end(10), end(10))
    with pytest.raises(Cloned, match="two enclaves have the identity of signer-2: stop all"):
        desk.admit("A", end(11), end(5))
    for letter in ("A", "B"):
        with pytest.raises(Cloned):
            desk.admit(letter, end(20), end(10))
    # Not even one that starts above everything, before its operator has looked.
    with pytest.raises(Cloned) as refused:
        desk.admit("C", end(30), end(29))
    assert refused.value.reason.endswith("accept-rollback signer-2 --version 29 --boot 4343434343434343")
    # A boot that was known before is never accepted.
    desk.accepted = [AcceptedState("signer-2", 10, "42" * 8), AcceptedState("signer-2", 5, "41" * 8)]
    for letter, start in (("A", 5), ("B", 10)):
        with pytest.raises(Cloned):
            desk.admit(letter, end(20), end(start))
    desk.accepted.append(AcceptedState("signer-2", 29, "43" * 8))
    desk.admit("C", end(30), end(29))
    assert seen(desk) == ("C", 30, "")
    assert [notice[0] for notice in desk.notices] == ["peer-cloned", "peer-accepted"]
    # And the others are known as copies at once.
    with pytest.raises(Cloned):
        desk.admit("A", end(40), end(5))


def test_an_earlier_boots_handshake_that_ends_late_is_no_clone(desk: Desk) -> None:
    """Its answer was on the way, through a slow coordinator, when the new boot came: our hello was made before that."""
    before = desk.book.seen(PEER)
    desk.admit("B", end(10), end(10))
    for known in (None, before):
        with pytest.raises(LinkFault, match="a boot that has ended since"):
            desk.admit("A", end(10), end(5), before=known)
    assert seen(desk) == ("B", 10, "")
    assert desk.book.refused == {}


def test_earlier_boots_are_kept_within_bounds(desk: Desk) -> None:
    for number in range(2 * KEPT_BOOTS):
        session = PeerSession(PEER, number.to_bytes(32, "big"), b"f" * 32, 1, end(10), end(10), 0.0)
        desk.book.admit(session, desk.book.seen(PEER), True)
    known = desk.book.seen(PEER)
    assert known is not None
    assert known.earlier == tuple(number.to_bytes(32, "big") for number in range(KEPT_BOOTS - 1, 2 * KEPT_BOOTS - 1))


def test_what_was_kept_comes_back_and_what_this_boot_saw_stays(desk: Desk) -> None:
    desk.admit("Z", end(3), peer=3)
    kept = decode(encode(desk.book.snapshot()), PeersRecord)
    again = Desk()
    again.admit("Y", end(4), peer=3)
    again.book.restore(kept)
    assert again.book.seen(PEER) == desk.book.seen(PEER)
    assert again.book.seen(3).boot == boot("Y")  # type: ignore[union-attr]
    with pytest.raises(RolledBack):
        again.admit("C", end(9))


def test_signers_that_the_roster_no_longer_lists_are_forgotten(desk: Desk) -> None:
    (known,) = desk.book.snapshot().seen
    again = Desk()
    again.book.restore(PeersRecord((msgspec.structs.replace(known, fingerprint="somebody else's"),)))
    assert again.book.snapshot() == PeersRecord(())
