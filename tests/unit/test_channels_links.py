"""Links between enclaves as peers come and go: who opens, what is retried, rationed, replaced and dropped."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable

import pytest

from enclave.channels import links as module
from enclave.channels.frames import HANDSHAKE_FRAME
from enclave.channels.handshake import Answer, Finish, Identity, Initiator, Link, Open
from enclave.channels.links import HANDSHAKE_TIMEOUT_S, RATION_HANDSHAKES, RATION_WINDOW_S, Knock, Links, Message
from enclave.errors import LinkFault, Malformed, Unavailable
from enclave.peers import PeerBook
from enclave.tasks import Promise, Timers
from enclave.wire import decode, encode
from tests.fakes.identities import identity, roster, sign_as
from tests.fakes.network import seeded_random

HERE = "main"
Change = tuple[str, int, bool, str]


class End:
    """One enclave's links, its HSM, and what it was told of changes."""

    def __init__(self, world: World, me: Identity, hsm: str = "at once") -> None:
        self.me, self.world, self.hsm = me.me, world, hsm
        self.changes: list[Change] = []
        self.failures: list[tuple[str, int, str]] = []
        self.failures: list[tuple[str, int, str]] = []
        self.waiting: deque[Callable[[], None]] = deque()
        self.signatures = 0
        self.links = Links(
            me,
            seeded_random(f"links/{me.me}/{me.boot_nonce.hex()}"),
            world.timers,
            lambda: world.now_s,
            PeerBook(me.roster, tuple, lambda: None, lambda *notice: None),
            self.sign,
            lambda coordinator, peer, data: world.queue.append((coordinator, me.me, peer, data)),
            lambda coordinator, peer, link, reason: self.changes.append((coordinator, peer, link is not None, reason)),
            lambda coordinator, peer, reason: self.failures.append((coordinator, peer, reason)),
        )

    def sign(self, message_digest: bytes) -> Promise[bytes]:
        self.signatures += 1
        promise: Promise[bytes] = Promise()
        if self.hsm == "away":
            promise.reject(Unavailable("the HSM is away", "plug it in"))
        elif self.hsm == "at once":
            promise.resolve(sign_as(self.me, message_digest))
        else:
            self.waiting.append(lambda: promise.resolve(sign_as(self.me, message_digest)))
        return promise

    def link(self, peer: int, coordinator: str = HERE) -> Link | None:
        return self.links.get(coordinator, peer)


class World:
    """Time, and a coordinator that relays handshake frames in order."""

    def __init__(self, members: Iterable[int] = (1, 2), hsm: str = "at once") -> None:
        self.now_s = 100.0
        self.timers = Timers(lambda: self.now_s)
        self.queue: deque[tuple[str, int, int, bytes]] = deque()
        self.sent: list[tuple[int, int, type]] = []
        self.faults: list[LinkFault] = []
        self.ends = {j: End(self, identity(j, elapsed=lambda: self.now_s), hsm) for j in members}

    def __getitem__(self, index: int) -> End:
        return self.ends[index]

    def present(self, *online: int, coordinator: str = HERE, to: Iterable[int] = ()) -> None:
        for j in to or self.ends:
            self.ends[j].links.on_presence(coordinator, online)

    def relay(self, lose: Callable[[int, int, Message], bool] = lambda sender, receiver, message: False) -> None:
        while self.queue:
            coordinator, sender, receiver, data = self.queue.popleft()
            message = decode(data[1:], Message)
            self.sent.append((sender, receiver, type(message)))
            if receiver in self.ends and not lose(sender, receiver, message):
                try:
                    self.ends[receiver].links.on_frame(coordinator, sender, data)
                except LinkFault as fault:
                    self.faults.append(fault)

    def later(self, seconds: float) -> None:
        self.now_s += seconds
        self.timers.fire()

    def up(self) -> World:
        self.present(1, 2)
        self.relay()
        assert self.linked()
        return self

    def linked(self, i: int = 1, j: int = 2, coordinator: str = HERE) -> bool:
        one, two = self[i].link(j, coordinator), self[j].link(i, coordinator)
        return one is not None and two is not None and one.key == two.key


def frame(message: Message) -> bytes:
    return HANDSHAKE_FRAME + encode(message)


def test_presence_brings_a_link_up_on_both_sides() -> None:
    world = World()
    world.present(1, 2)
    world.relay()
    assert world.linked()
    assert world[1].changes == [(HERE, 2, True, "")]
    assert world[2].changes == [(HERE, 1, True, "")]
    assert world[1].link(2).peer.boot_nonce == identity(2).boot_nonce
    assert world[2].link(1).peer.frame_key == identity(1).frame_key


def test_an_honest_start_reports_no_fault() -> None:
    """Both sides come online at once: the lower's Open and the higher's Knock cross."""
    assert World().up().faults == []


def test_every_pair_through_every_coordinator_has_its_own_link() -> None:
    world = World((1, 2, 3))
    for coordinator in ("main", "spare"):
        world.present(1, 2, 3, coordinator=coordinator)
        world.relay()
    keys = {world[i].link(j, c).key for i in (1, 2, 3) for j in (1, 2, 3) if i != j for c in ("main", "spare")}
    assert len(keys) == 6
    assert all(world.linked(i, j, c) for i, j in ((1, 2), (1, 3), (2, 3)) for c in ("main", "spare"))


def test_the_lower_index_opens_and_the_higher_knocks() -> None:
    world = World()
    world.present(1, 2, to=(1,))
    assert [type(decode(data[1:], Message)) for *_, data in world.queue] == [Open]
    world.queue.clear()
    world.present(1, 2, to=(2,))
    assert [type(decode(data[1:], Message)) for *_, data in world.queue] == [Knock]


def test_a_knock_is_answered_by_an_open() -> None:
    """Signer 2 came later: signer 1's first Open reached nobody."""
    world = World()
    world.present(1, 2, to=(1,))
    world.relay(lose=lambda *_: True)
    world.present(1, 2, to=(2,))
    world.relay()
    assert world.linked()
    assert [kind for *_, kind in world.sent] == [Open, Knock, Open, Answer, Finish]


def test_a_hello_is_not_said_again_once_its_clock_is_old() -> None:
    """SPEC 7.8: signer 2 came some seconds later, and is told the time of now."""
    opened = []
    for seconds in (0.9, 1.1):
        world = World()
        world.present(1, 2, to=(1,))
        ((*_, first),) = world.queue
        world.relay(lose=lambda *_: True)
        world.later(seconds)
        world.present(1, 2, to=(2,))
        world.relay(lose=lambda sender, receiver, message: False)
        assert world.linked()
        assert world.faults == []
        opened.append(first)
        assert [kind for *_, kind in world.sent] == [Open, Knock, Open, Answer, Finish]
        before = world[2].link(1).proofs[0].initiator
        assert (Open(before) == decode(first[1:], Message)) == (seconds < 1)


@pytest.mark.parametrize("me", [1, 2])
def test_links_made_anew_are_there_all_the_time(me: int) -> None:
    world = World((1, 2, 3))
    world.present(1, 2, 3)
    world.relay()
    before = {peer: world[me].link(peer) for peer in (1, 2, 3) if peer != me}
    world[me].links.renew()
    assert {peer: world[me].link(peer) for peer in before} == before
    world.relay()
    for peer, link in before.items():
        assert world.linked(me, peer)
        assert world[me].link(peer) != link
    assert world.faults == []


def test_a_knock_from_below_does_nothing() -> None:
    world = World()
    world.present(1, 2, to=(2,))
    world.queue.clear()
    world[2].links.on_frame(HERE, 1, frame(Knock()))
    assert not world.queue


def test_presence_said_again_changes_nothing() -> None:
    world = World().up()
    before = world[1].link(2)
    sent = len(world.sent)
    world.present(1, 2)
    world.relay()
    assert world[1].link(2) is before
    assert len(world.sent) == sent


def test_oneself_and_strangers_are_no_peers() -> None:
    world = World((1,))
    world[1].links.on_presence(HERE, (1, 9, 16))
    assert not world.queue


def test_a_peer_that_went_away_loses_its_link() -> None:
    world = World((1, 2, 3))
    world.present(1, 2, 3)
    world.relay()
    world.present(1, 3, to=(1, 3))
    assert world[1].link(2) is None
    assert world[1].changes[-1] == (HERE, 2, False, "the coordinator no longer reaches it")
    assert world.linked(1, 3)
    world.present(1, 2, 3, to=(1, 3))
    world.present(to=(2,))
    world.present(1, 2, 3, to=(2,))
    world.relay()
    assert world.linked(1, 2)
    assert world.linked(2, 3)


def test_the_end_of_one_coordinator_leaves_the_others_links() -> None:
    world = World()
    for coordinator in ("main", "spare"):
        world.present(1, 2, coordinator=coordinator)
    world.relay()
    world.present(coordinator="main")
    assert world[1].link(2, "main") is None
    assert world.linked(coordinator="spare")


def test_drop_all_drops_links_and_attempts() -> None:
    world = World().up()
    world.present(1, 2, coordinator="spare", to=(1,))
    world[1].links.drop_all("the signer is gone")
    assert world[1].link(2) is None
    assert world[1].changes[-1] == (HERE, 2, False, "the signer is gone")
    world.queue.clear()
    world.later(1000)
    assert not world.queue
    with pytest.raises(LinkFault, match="not online"):
        world[1].links.on_frame(HERE, 2, frame(Knock()))


# --- retry ---


@pytest.mark.parametrize("lost", [Open, Answer, Finish])
def test_a_lost_message_is_made_good_by_the_next_attempt(lost: type) -> None:
    """Whichever of the three gets lost, one time-out later both ends have one key."""
    world = World()
    world.present(1, 2)
    world.relay(lose=lambda sender, receiver, message: isinstance(message, lost))
    assert not world.linked()
    for _ in range(2):
        world.later(HANDSHAKE_TIMEOUT_S + 0.1)
        world.relay()
    assert world.linked()


def test_attempts_go_on_with_growing_pauses() -> None:
    world = World((1,))
    world.present(1, 2)
    starts = []
    for _ in range(200):
        if world.queue:
            assert [type(decode(data[1:], Message)) for *_, data in world.queue] == [Open]
            world.queue.clear()
            starts.append(world.now_s)
        world.later(1.0)
    pauses = [b - a for a, b in itertools.pairwise(starts)]
    assert pauses == [10, 10, 10, 10, 16, 30, 30, 30, 30]


def test_no_attempts_after_the_peer_has_gone_or_the_link_is_up() -> None:
    world = World().up()
    world.later(1000)
    assert not world.queue
    lonely = World((1,))
    lonely.present(1, 2)
    lonely.present(1)
    lonely.queue.clear()
    lonely.later(1000)
    assert not lonely.queue


def test_every_retry_is_a_new_hello() -> None:
    world = World((1,))
    world.present(1, 2)
    world.later(HANDSHAKE_TIMEOUT_S)
    first, second = (decode(data[1:], Message).hello for *_, data in world.queue)
    assert first.nonce != second.nonce
    assert first.x25519 != second.x25519
    assert first.kem_key != second.kem_key


# --- what a hostile coordinator can do ---


def test_messages_of_another_handshake_leave_a_link_as_it_is() -> None:
    world, other = World().up(), World()
    before = world[1].link(2), world[2].link(1)
    recorded: list[tuple[int, int, Message]] = []
    other.present(1, 2)
    other.relay(lambda sender, receiver, message: recorded.append((sender, receiver, message)) or False)
    last = [each for each in recorded if isinstance(each[2], Answer | Finish)]
    assert len(last) >= 2
    for sender, receiver, message in last:
        with pytest.raises(LinkFault):
            world[receiver].links.on_frame(HERE, sender, frame(message))
    assert (world[1].link(2), world[2].link(1)) == before


def test_a_replayed_open_costs_one_signature_and_replaces_nothing() -> None:
    world = World()
    world.present(1, 2)
    opening = next(data for _, sender, _, data in world.queue if sender == 1)
    world.relay()
    link, signatures = world[2].link(1), world[2].signatures
    world[2].links.on_frame(HERE, 1, opening)
    world.relay()
    assert world[2].link(1) is link
    assert world[2].signatures == signatures + 1
    assert world.linked()


def test_an_altered_answer_does_not_end_the_attempt() -> None:
    """The right answer, arriving after a forged one, still makes the link."""
    world = World()
    world.present(1, 2, to=(2,))
    world.queue.clear()
    world.present(1, 2, to=(1,))
    coordinator, sender, _, opening = world.queue.popleft()
    world[2].links.on_frame(coordinator, sender, opening)
    _, _, _, data = world.queue.popleft()
    answer = decode(data[1:], Message)
    assert isinstance(answer, Answer)
    forged = Answer(answer.hello, answer.ciphertext, bytes(64), answer.confirmation)
    with pytest.raises(LinkFault, match="identity signature"):
        world[1].links.on_frame(HERE, 2, frame(forged))
    world[1].links.on_frame(HERE, 2, data)
    world.relay()
    assert world.linked()


@pytest.mark.parametrize(
    ("me", "sender", "message", "reason"),
    [
        (1, 2, Answer, "an answer to no hello of ours"),
        (1, 2, Finish, "a finish of no handshake of ours"),
        (2, 1, Finish, "a finish of no handshake of ours"),
        (1, 2, Open, "the higher index does not open"),
    ],
)
def test_messages_nobody_waits_for(me: int, sender: int, message: type, reason: str) -> None:
    spy = World()
    spy.present(1, 2)
    kept: dict[type, Message] = {}

    def keep(sender: int, receiver: int, message: Message) -> bool:
        kept[type(message)] = message
        return False

    spy.relay(keep)
    world = World().up()
    with pytest.raises(LinkFault) as caught:
        world[me].links.on_frame(HERE, sender, frame(kept[message]))
    assert (caught.value.peer, caught.value.reason) == (sender, reason)
    assert world.linked()


@pytest.mark.parametrize("sender", [1, 3, 0, 17])
def test_frames_of_whoever_is_not_online(sender: int) -> None:
    world = World().up()
    with pytest.raises(LinkFault, match="not online"):
        world[1].links.on_frame(HERE, sender, frame(Knock()))
    with pytest.raises(LinkFault, match="not online"):
        world[1].links.on_frame("unknown", 2, frame(Knock()))


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x01\xc1", b"\x01\x91\x09", frame(Knock()) + b"\0", b"\x01" + b"\x91" * 5000]
)
def test_frames_that_are_no_message(data: bytes) -> None:
    world = World().up()
    with pytest.raises(Malformed):
        world[1].links.on_frame(HERE, 2, data)
    assert world.linked()


def test_another_roster_is_refused_and_reported() -> None:
    world = World((2,))
    world.present(1, 2)
    foreign = End(world, identity(1, of=roster(network="other")))
    world.queue.clear()
    foreign.links.on_presence(HERE, (1, 2))
    _, _, _, data = world.queue.popleft()
    with pytest.raises(LinkFault, match="pins another roster"):
        world[2].links.on_frame(HERE, 1, data)
    ((coordinator, peer, reason),) = world[2].failures
    assert (coordinator, peer) == (HERE, 1)
    assert reason.startswith("pins another roster")
    assert world[2].changes == []
    assert world[2].signatures == 0


def test_a_refused_open_does_not_report_an_established_link_down() -> None:
    """The first message is unsigned: one forged hello ended all ceremonies of a link that still stood."""
    world = World().up()
    foreign = End(World(()), identity(1, of=roster(network="other")))
    foreign.links.on_presence(HERE, (1, 2))
    with pytest.raises(LinkFault, match="pins another roster"):
        world[2].links.on_frame(HERE, 1, foreign.world.queue.popleft()[3])
    assert world.linked()
    assert world[2].changes == [(HERE, 1, True, "")]
    assert [failure[:2] for failure in world[2].failures] == [(HERE, 1)]


def test_an_hsm_away_at_a_replacement_leaves_the_link_up() -> None:
    world = World().up()
    world[2].hsm = "away"
    world[1].links.on_frame(HERE, 2, frame(Knock()))
    world.relay()
    assert world.linked()
    assert world[2].changes == [(HERE, 1, True, "")]
    assert world[2].failures == [(HERE, 1, "the HSM is away (plug it in)")]


def test_opens_are_rationed_and_the_window_moves_on() -> None:
    world = World()
    world.present(1, 2, to=(2,))
    for _ in range(RATION_HANDSHAKES):
        world[2].links.on_frame(HERE, 1, another_open(1, 2))
    with pytest.raises(LinkFault, match=f"more than {RATION_HANDSHAKES} handshakes in {RATION_WINDOW_S:.0f} s"):
        world[2].links.on_frame(HERE, 1, another_open(1, 2))
    assert world[2].signatures == RATION_HANDSHAKES
    # A ration is for one peer through one coordinator.
    world.now_s += RATION_WINDOW_S - 0.1
    with pytest.raises(LinkFault, match="more than"):
        world[2].links.on_frame(HERE, 1, another_open(1, 2))
    world.now_s += 0.2
    world[2].links.on_frame(HERE, 1, another_open(1, 2))
    assert world[2].signatures == RATION_HANDSHAKES + 1


def test_an_open_said_again_costs_nothing() -> None:
    world = World()
    world.present(1, 2, to=(2,))
    opening = another_open(1, 2)
    for _ in range(RATION_HANDSHAKES + 1):
        world[2].links.on_frame(HERE, 1, opening)
    assert world[2].signatures == 1


def another_open(sender: int, receiver: int) -> bytes:
    """A hello of a new attempt, as anybody can make one up."""
    return frame(Open(Initiator(identity(sender), receiver, os.urandom).hello))


def test_the_ration_of_one_peer_leaves_another_its_own() -> None:
    world = World((1, 2, 3))
    world.present(1, 2, 3)
    openings = {sender: data for _, sender, receiver, data in world.queue if receiver == 3}
    for _ in range(RATION_HANDSHAKES):
        world[3].links.on_frame(HERE, 1, another_open(1, 3))
    with pytest.raises(LinkFault, match="more than"):
        world[3].links.on_frame(HERE, 1, another_open(1, 3))
    world[3].links.on_frame(HERE, 2, openings[2])


def test_knocks_are_rationed() -> None:
    world = World((1,))
    world.present(1, 2)
    world.queue.clear()
    for _ in range(RATION_HANDSHAKES):
        world[1].links.on_frame(HERE, 2, frame(Knock()))
    with pytest.raises(LinkFault, match="more than"):
        world[1].links.on_frame(HERE, 2, frame(Knock()))
    assert len(world.queue) == RATION_HANDSHAKES


def test_state_stays_bounded_under_a_flood() -> None:
    world = World()
    world.present(1, 2)
    opening = next(data for _, sender, _, data in world.queue if sender == 1)
    for _ in range(500):
        world.now_s += 0.6
        world[2].links.on_frame(HERE, 1, opening)
    assert len(world[2].links._attempts) == 1
    assert len(world[2].links._rations[HERE, 1]) <= RATION_HANDSHAKES


# --- replacement ---


def test_a_new_boot_of_the_peer_replaces_the_link() -> None:
    world = World().up()
    old = world[2].link(1)
    world.ends[1] = End(world, identity(1, boot=1))
    world.present(1, 2, to=(1,))
    world.relay()
    assert world.linked()
    assert world[2].link(1).peer.boot_nonce == identity(1, boot=1).boot_nonce != old.peer.boot_nonce
    assert world[2].changes[-2:] == [(HERE, 1, False, "replaced by a new handshake"), (HERE, 1, True, "")]


def test_the_old_link_stays_until_the_new_one_is_complete() -> None:
    world = World().up()
    old = world[2].link(1)
    world[1].links.on_frame(HERE, 2, frame(Knock()))
    world.relay(lose=lambda sender, receiver, message: isinstance(message, Answer))
    assert world[1].link(2).key == world[2].link(1).key == old.key


def test_a_lost_finish_of_a_replacement_is_made_good() -> None:
    """The initiator has the new link, the responder the old one: without another handshake no frame ever opens."""
    world = World().up()
    world[1].links.on_frame(HERE, 2, frame(Knock()))
    world.relay(lose=lambda sender, receiver, message: isinstance(message, Finish))
    for _ in range(10):
        world.later(HANDSHAKE_TIMEOUT_S + 0.1)
        world.relay()
    assert world.linked()


# --- the HSM takes its time, or is away ---


def test_a_slow_hsm_delays_and_nothing_else() -> None:
    world = World(hsm="slow")
    world.present(1, 2, to=(2,))
    world.queue.clear()
    world.present(1, 2, to=(1,))
    world.relay()
    assert not world.queue
    world[2].waiting.popleft()()
    world.relay()
    assert world[1].link(2) is None
    world[1].waiting.popleft()()
    world.relay()
    assert world.linked()


def test_a_signature_that_comes_after_the_peer_left_makes_no_link() -> None:
    world = World(hsm="slow")
    world.present(1, 2, to=(2,))
    world.queue.clear()
    world.present(1, 2, to=(1,))
    world.relay()
    world[2].waiting.popleft()()
    world.relay()
    world.present(1, to=(1,))
    world[1].waiting.popleft()()
    assert world[1].link(2) is None
    assert not world.queue
    assert world[1].changes == []


def test_an_hsm_that_is_away_is_reported_and_retried() -> None:
    world = World(hsm="away")
    world.present(1, 2)
    world.relay()
    assert world[2].failures[-1] == (HERE, 1, "the HSM is away (plug it in)")
    assert world[2].changes == []
    for end in world.ends.values():
        end.hsm = "at once"
    world.later(HANDSHAKE_TIMEOUT_S + 0.1)
    world.relay()
    assert world.linked()


def test_the_constants_are_what_the_tests_assume() -> None:
    assert (module.RETRY_FIRST_S, module.RETRY_MOST_S, HANDSHAKE_TIMEOUT_S) == (1.0, 30.0, 10.0)
