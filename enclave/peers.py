"""What this enclave remembers of its peers' states, and when it refuses one: SPEC 0.7.

A peer's *state* is how far its audit chain goes. Kept for each peer: the boot seen last with the highest state it
showed, and its earlier boots. Pure: no I/O, no clock; `standing.py` keeps it on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec

from enclave.audit import ChainEnd
from enclave.channels.handshake import PeerSession
from enclave.errors import Cloned, LinkFault, Refused, RolledBack
from enclave.wire import Bytes32, Count, ShortText, Wire
from policies.acceptance import BOOT_DIGITS, AcceptedState
from policies.roster import MAX_SIGNERS, Roster

KEPT_BOOTS = 32

Bar = Literal["", "rewound", "cloned"]


class SeenPeer(Wire, frozen=True):
    """What was seen of one signer, which its HSM's fingerprint names. `bar`: why its present boot is refused.

    `version`, `head`: the highest state that boot `boot` showed. `earlier`: boots before it, oldest first.
    """

    fingerprint: ShortText
    boot: Bytes32
    version: Count
    head: Bytes32
    earlier: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=KEPT_BOOTS)]
    bar: Bar


class PeersRecord(Wire, frozen=True):
    """The plaintext of the sealed record: all that is remembered of peers."""

    seen: Annotated[tuple[SeenPeer, ...], msgspec.Meta(max_length=MAX_SIGNERS)]


Notice = Callable[[str, int, SeenPeer], None]


class PeerBook:
    """The highest states seen of all peers, and which of them are refused now (`refused`: why)."""

    def __init__(
        self,
        roster: Roster,
        accepted: Callable[[], Sequence[AcceptedState]],
        changed: Callable[[], None],
        notice: Notice,
    ) -> None:
        """`accepted()`: the states that this enclave's operator has accepted by hand. `changed()`: there is something
        new to keep. `notice(event, peer, seen)`: for the audit chain, once for each refusal or acceptance."""
        self._roster, self._accepted, self._changed, self._notice = roster, accepted, changed, notice
        self._seen: dict[str, SeenPeer] = {}
        self._noticed: dict[int, tuple[str, bytes]] = {}
        self.refused: dict[int, str] = {}

    # --- on disk ---

    def snapshot(self) -> PeersRecord:
        """All that is to be kept."""
        return PeersRecord(tuple(self._seen.values()))

    def restore(self, record: PeersRecord) -> None:
        """Take in what an earlier boot kept. What this boot has seen itself stays."""
        names = {signer.fingerprint for signer in self._roster.signers}
        for seen in record.seen:
            if seen.fingerprint in names:
                self._seen.setdefault(seen.fingerprint, seen)

    # --- judging ---

    def seen(self, peer: int) -> SeenPeer | None:
        """What is known of signer `peer` now. Whoever makes a hello keeps it for `admit`."""
        return self._seen.get(self._roster.signer(peer).fingerprint)

    def admit(self, session: PeerSession, before: SeenPeer | None, answered: bool) -> None:
        """SPEC 0.7: judge a session whose handshake has verified, and remember it.

        `before`: what was known when our own hello of this handshake was made. `answered`: the peer's hello was made
        after it, in answer. Raises `RolledBack`, `Cloned`, or `LinkFault` for a boot that ended meanwhile.
        """
        seen = self.seen(session.index)
        if seen is None:
            self._remember(session.index, session.boot_nonce, session.chain, ())
        elif session.boot_nonce == seen.boot:
            self._on_same_boot(session, seen, before if answered else None)
        elif session.boot_nonce in seen.earlier:
            self._on_earlier_boot(session, seen, before)
        else:
            self._on_new_boot(session, seen)
        self.refused.pop(session.index, None)

    def on_told(self, peer: int, boot: bytes, before: SeenPeer | None, chain: ChainEnd) -> None:
        """SPEC 0.7: a peer tells its state on a link. Raises `RolledBack` for one below `before`, known when the link's
        handshake began; one that came late is passed over."""
        seen = self.seen(peer)
        if seen is not None and seen.boot == boot:
            self._check_present(peer, seen, before, chain)
            self._advance(peer, seen, chain)

    def _on_same_boot(self, session: PeerSession, seen: SeenPeer, before: SeenPeer | None) -> None:
        if seen.bar == "cloned":
            raise self._refuse(session.index, seen, "cloned", Cloned(self._told_cloned(session.index)))
        if seen.bar == "rewound":
            raise self._rewound(session.index, seen, session.chain)
        self._check_present(session.index, seen, before, session.chain)
        self._advance(session.index, seen, session.chain)

    def _check_present(self, peer: int, seen: SeenPeer, before: SeenPeer | None, chain: ChainEnd) -> None:
        """A running enclave's state only grows: `chain` was stated after `before` was seen of the same boot."""
        lower = before is not None and before.boot == seen.boot and chain.version < before.version
        if lower or _forks(chain, seen):
            raise self._rewound(peer, seen, chain)

    def _on_earlier_boot(self, session: PeerSession, seen: SeenPeer, before: SeenPeer | None) -> None:
        """A boot that another one had replaced. It proves two at a time only if it answered to a hello of ours that was
        made after the other was there."""
        if seen.bar != "cloned" and (before is None or before.boot != seen.boot):
            raise LinkFault(session.index, "a handshake of a boot that has ended since")
        raise self._refuse(session.index, seen, "cloned", Cloned(self._told_cloned(session.index)))

    def _on_new_boot(self, session: PeerSession, seen: SeenPeer) -> None:
        peer, start, name = session.index, session.boot_chain, self._roster.signer(session.index).name
        behind = start.version < seen.version or _forks(start, seen)
        if seen.bar == "cloned" or behind:
            accepted = AcceptedState(name, start.version, session.boot_nonce.hex()[:BOOT_DIGITS])
            if accepted not in self._accepted():
                raise self._refuse_new(session, seen, accepted)
            # It serves once: from now on this boot is known.
            self._noticed.pop(peer, None)
            self._notice("peer-accepted", peer, _seen_now(session, seen))
        self._remember(peer, session.boot_nonce, session.chain, (*seen.earlier, seen.boot)[-KEPT_BOOTS:])

    # --- remembering ---

    def _remember(self, peer: int, boot: bytes, chain: ChainEnd, earlier: tuple[bytes, ...]) -> None:
        fingerprint = self._roster.signer(peer).fingerprint
        self._seen[fingerprint] = SeenPeer(fingerprint, boot, chain.version, chain.head, earlier, "")
        self._changed()

    def _advance(self, peer: int, seen: SeenPeer, chain: ChainEnd) -> None:
        if chain.version > seen.version:
            self._remember(peer, seen.boot, chain, seen.earlier)

    # --- refusing ---

    def _refuse(self, peer: int, seen: SeenPeer, bar: Bar, refusal: Refused) -> Refused:
        """Refuse the boots that are known; told to the audit chain once."""
        self.refused[peer] = refusal.rule
        if seen.bar != bar:
            seen = self._seen[seen.fingerprint] = msgspec.structs.replace(seen, bar=bar)
            self._changed()
        self._note(peer, (bar, b""), f"peer-{bar}", seen)
        return refusal

    def _rewound(self, peer: int, seen: SeenPeer, chain: ChainEnd) -> Refused:
        told = (
            f"the running enclave of {self._roster.signer(peer).name} shows state {chain.version} after "
            f"{seen.version}, or another audit head: its memory was put back, or it runs twice. Restart it"
        )
        return self._refuse(peer, seen, "rewound", RolledBack(told))

    def _refuse_new(self, session: PeerSession, seen: SeenPeer, needed: AcceptedState) -> Refused:
        """Refuse a boot that needs its state accepted."""
        peer = session.index
        command = f"keymoot enclave accept-rollback {needed.signer} --version {needed.version} --boot {needed.boot}"
        if seen.bar == "cloned":
            told = self._told_cloned(peer, f"once its operator is sure that this is the only one, run: {command}")
            return self._refuse(peer, seen, "cloned", Cloned(told))
        what = f"state {needed.version}, below {seen.version}, which was seen of it"
        if needed.version == seen.version:
            what = f"another audit head at state {needed.version}"
        self.refused[peer] = "rolled-back"
        self._note(peer, ("rolled-back", session.boot_nonce), "peer-rolled-back", _seen_now(session, seen))
        return RolledBack(
            f"{needed.signer} has started with {what}: its disk was put back. If its operator says that it is right, "
            f"run: {command}"
        )

    def _told_cloned(self, peer: int, then: str = "stop all, start the right one, and see here what to accept") -> str:
        return f"two enclaves have the identity of {self._roster.signer(peer).name}: {then}"

    def _note(self, peer: int, what: tuple[str, bytes], event: str, seen: SeenPeer) -> None:
        if self._noticed.get(peer) != what:
            self._noticed[peer] = what
            self._notice(event, peer, seen)


def _seen_now(session: PeerSession, seen: SeenPeer) -> SeenPeer:
    """What the refused or accepted boot shows, for the audit chain."""
    return msgspec.structs.replace(
        seen, boot=session.boot_nonce, version=session.boot_chain.version, head=session.boot_chain.head
    )


def _forks(chain: ChainEnd, seen: SeenPeer) -> bool:
    return chain.version == seen.version and chain.head != seen.head
