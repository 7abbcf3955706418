"""One member's side of one ceremony: what a protocol awaits (`broadcast`, `send`, `gather`), without I/O.

A protocol declares its rounds as a tuple of `RoundMessage` types in order. Outgoing bodies are handed to `transmit`;
verified incoming bodies come in through `receive`, with the sender the channel has proved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeVar

from enclave.errors import Malformed, PeerFault
from enclave.tasks import Promise
from enclave.wire import Wire, decode, encode
from policies.transcript import DIGEST_BYTES, Tag, digest

MAX_CONTENT_BYTES = 2 * 1024 * 1024 - 1024


class RoundMessage(Wire, frozen=True):
    """Base of the one message type of a round. `private`: each receiver gets its own."""

    private: ClassVar[bool] = False


M = TypeVar("M", bound=RoundMessage)


class Transmit(Protocol):
    """Takes a body to the channel: `receivers` get the same `content`; `private` binds the one receiver."""

    def __call__(self, round_number: int, receivers: tuple[int, ...], private: bool, content: bytes) -> None: ...


class Session:
    """The rounds of one ceremony for member `me` of `members` (ascending, `me` among them)."""

    def __init__(
        self,
        context: bytes,
        me: int,
        members: tuple[int, ...],
        rounds: tuple[type[RoundMessage], ...],
        transmit: Transmit,
    ) -> None:
        self.context = context
        self.me = me
        self.members = members
        self.peers = tuple(j for j in members if j != me)
        self.round = 0
        """The round whose messages were awaited last, from 1; 0 before the first."""
        self._rounds = rounds
        self._transmit = transmit
        self._inbox: dict[tuple[int, int], RoundMessage] = {}
        self._content_hashes: dict[tuple[int, int], bytes] = {}
        self._view = digest(Tag.VIEW, context)
        self._sent_views: dict[int, bytes] = {}
        self._views: dict[tuple[int, int], bytes] = {}
        self._last_round = dict.fromkeys(self.peers, 0)
        self._waiting: tuple[int, Promise[None]] | None = None
        self._fault: PeerFault | None = None

    # --- what a protocol uses ---

    def broadcast(self, message: RoundMessage) -> None:
        """→ the same body to all members; own copy counts in `gather`."""
        number = self._number(type(message))
        content = self._with_view(number, message)
        self._inbox[number, self.me] = message
        self._content_hashes[number, self.me] = digest(Tag.CONTENT, content)
        self._transmit(number, self.peers, False, content)

    def send(self, messages: Mapping[int, RoundMessage]) -> None:
        """⇢ each peer its own body."""
        for receiver, message in messages.items():
            number = self._number(type(message))
            self._transmit(number, (receiver,), True, self._with_view(number, message))

    async def gather(self, kind: type[M]) -> dict[int, M]:
        """↺ the round's message of every member (of every peer, if the round is private), by index, ascending.

        Raises `PeerFault` for a body that breaks the order of rounds, does not decode, or shows another view.
        """
        self.round = number = self._number(kind)
        if self._fault is None and not self._complete(number):
            promise: Promise[None] = Promise()
            self._waiting = (number, promise)
            await promise
        # Also one that was seen while nobody waited.
        if self._fault is not None:
            raise self._fault
        self._check_views(number)
        if not kind.private:
            self._see(number)
        members = self.peers if kind.private else self.members
        return {j: self._inbox.pop((number, j)) for j in members}  # type: ignore[misc]

    def missing(self) -> tuple[int, ...]:
        """Members whose body is awaited now: the silent ones when a deadline passes."""
        if self._waiting is None:
            return ()
        number = self._waiting[0]
        return tuple(j for j in self.peers if (number, j) not in self._inbox)

    @property
    def view(self) -> bytes:
        """The view of all broadcast bodies gathered so far (SPEC 0.5)."""
        return self._view

    # --- what the channel uses ---

    def fail(self, fault: PeerFault) -> None:
        """End the ceremony where it waits next. The first fault stays."""
        if self._fault is None:
            self._fault = fault
            if self._waiting is not None:
                promise, self._waiting = self._waiting[1], None
                promise.reject(fault)

    def receive(self, sender: int, round_number: int, content: bytes) -> None:
        """Take a body that verified as `sender`'s. A bad one fails the ceremony and names the sender (SPEC 0.6)."""
        if self._fault is not None:
            return
        try:
            self._accept(sender, round_number, content)
        except Malformed as error:
            self.fail(PeerFault("0.6", str(error), (sender,)))
        except PeerFault as fault:
            self.fail(fault)

    def _accept(self, sender: int, round_number: int, content: bytes) -> None:
        # SPEC 0.6: once for each sender, in the order of rounds, canonically the round's one type.
        if not 1 <= round_number <= len(self._rounds):
            raise PeerFault("0.6", f"round {round_number} does not exist", (sender,))
        if round_number != self._last_round[sender] + 1:
            raise PeerFault("0.6", f"round {round_number} after {self._last_round[sender]}", (sender,))
        if len(content) < DIGEST_BYTES:
            raise PeerFault("0.6", "a body without a view", (sender,))
        self._last_round[sender] = round_number
        kind = self._rounds[round_number - 1]
        message = decode(content[DIGEST_BYTES:], kind)
        self._views[round_number, sender] = content[:DIGEST_BYTES]
        if not kind.private:
            self._content_hashes[round_number, sender] = digest(Tag.CONTENT, content)
        self._inbox[round_number, sender] = message
        if self._waiting is not None and self._complete(self._waiting[0]):
            promise, self._waiting = self._waiting[1], None
            promise.resolve(None)

    # --- rounds and views ---

    def _number(self, kind: type[RoundMessage]) -> int:
        return self._rounds.index(kind) + 1

    def _complete(self, number: int) -> bool:
        return all((number, j) in self._inbox for j in self.peers)

    def _with_view(self, number: int, message: RoundMessage) -> bytes:
        self._sent_views[number] = self._view
        content = self._view + encode(message)
        if len(content) > MAX_CONTENT_BYTES:
            raise Malformed(f"round {number}: {len(content)} bytes exceed a frame")
        return content

    def _check_views(self, number: int) -> None:
        """SPEC 0.5: all members had seen the same broadcast bodies when they sent this round."""
        expected = self._sent_views.pop(number)
        for j in self.peers:
            if self._views.pop((number, j)) != expected:
                raise PeerFault("0.5", f"signer {j} saw other bodies before round {number}")

    def _see(self, number: int) -> None:
        hashes = [self._content_hashes.pop((number, j)) for j in self.members]
        self._view = digest(Tag.VIEW, self.context, bytes([number]), *hashes)
