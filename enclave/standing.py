"""SPEC 0.7 at work: what this enclave tells of its own state, and how what it has seen of its peers is kept.

Every minute: the audit chain's head is signed, the chain's end is known to be on disk, peers are told. What was seen of
peers is sealed and stored when it changes, at once or `SAVE_EVERY_S` after the last time; a crash before that loses
what was seen since.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from enclave.audit import AuditLog
from enclave.channels.links import Links
from enclave.effects import Effects
from enclave.errors import CallerError, Refused, Unavailable
from enclave.log import Log
from enclave.peers import PeerBook, SeenPeer
from enclave.shares import Vault
from enclave.tasks import Promise, Task, Timers
from enclave.wire import Record
from policies.acceptance import BOOT_DIGITS, AcceptedState
from policies.roster import Roster

PERIOD_S = 60.0
TELL_SOON_S = 1.0
# A peer can show a new state as often as it likes: neither an HSM call and a write follow from each, nor an audit
# entry. Every one is judged at once, against what is in memory, so that no refusal waits: what is stored late is only
# what this enclave will know after a crash within these seconds. What a refusal was found by is stored at once, as long
# as it is audited: `NOTICES` times for a peer in `NOTICES_PERIODS`.
SAVE_EVERY_S = 5.0
NOTICES, NOTICES_PERIODS = 8, 60


class Standing:
    """This enclave's state towards its peers, and theirs."""

    def __init__(
        self,
        roster: Roster,
        audit: AuditLog,
        effects: Effects,
        timers: Timers,
        sign_identity: Callable[[bytes], Promise[bytes]],
        accepted: Callable[[], Sequence[AcceptedState]],
        log: Log,
    ) -> None:
        self._roster, self._audit, self._effects, self._timers = roster, audit, effects, timers
        self._sign_identity, self._log = sign_identity, log
        self.book = PeerBook(roster, accepted, self._changed, self._notice)
        self.counters: dict[str, int] = {}
        self._version = 0
        self._telling = False
        self._unsaved = self._saving = self._resting = self._urgent = self._failed = self._loaded = False
        self._periods = 0
        # By peer: notices since the counting began anew, and how many of them no audit entry tells of.
        self._notices: dict[int, int] = {}
        self._left_out: dict[int, int] = {}

    def start(self, links: Links, vault: Vault) -> None:
        """Begin the minutes."""
        self._links, self._vault = links, vault
        self._timers.after(PERIOD_S, self._minute)

    async def load(self, record: Record | None, audit_seq: int) -> tuple[str, str]:
        """Take in what the signer's store holds of peers, once a boot. Returns an event for the audit chain and its
        reason, both empty where all is well. Raises `Unavailable` without the HSM."""
        if self._loaded:
            return "", ""
        event = reason = ""
        if record is not None:
            self._version = max(self._version, record.version)
            try:
                self.book.restore(await self._vault.open_peers(record))
            except (CallerError, Refused) as error:
                event, reason = "peers-unreadable", str(error)[:300]
        elif audit_seq > 0:
            event, reason = "peers-unknown", "the store has an audit chain, and nothing of what was seen of peers"
        self._loaded = True
        if event:
            self._log.warning("peers' states are not known", reason=reason)
        return event, reason

    def gauges(self) -> dict[str, int]:
        """Which peers are refused now, and why."""
        return {f"peer_refused|{self._roster.signer(peer).name}|{why}": 1 for peer, why in self.book.refused.items()}

    # --- our own state ---

    def on_link_up(self, key: tuple[str, int]) -> None:
        """A peer learns at once how far our chain is; every minute it learns that again."""
        self._run(self._settle_and_tell(key))

    def tell_soon(self) -> None:
        """SPEC 7.6: peers are to learn within a second how far our chain is."""
        if not self._telling:
            self._telling = True
            self._timers.after(TELL_SOON_S, lambda: self._run(self._settle_and_tell_all()))

    async def _settle_and_tell_all(self) -> None:
        self._telling = False
        await self._audit.settle(lambda: self._effects.store(()))
        self._links.tell_all()

    async def _settle_and_tell(self, key: tuple[str, int]) -> None:
        await self._audit.settle(lambda: self._effects.store(()))
        self._links.tell(key)

    def _minute(self) -> None:
        self._timers.after(PERIOD_S, self._minute)
        self._periods += 1
        if self._periods % NOTICES_PERIODS == 0:
            self._notices.clear()
        self._run(self._sign_and_tell())

    async def _sign_and_tell(self) -> None:
        audit = self._audit
        to_sign, seq, head = audit.head_to_sign(), audit.seq, audit.head
        if to_sign is not None:
            try:
                signature = await self._sign_identity(to_sign)
            except (Unavailable, CallerError) as error:
                self._log.warning("audit head not signed", reason=str(error))
            else:
                self._effects.audit(audit.record_head(seq, head, signature))
        await audit.settle(lambda: self._effects.store(()))
        self._links.tell_all()
        self._save()

    # --- what was seen of peers ---

    def _changed(self) -> None:
        self._unsaved = True
        self._save()

    def _save(self) -> None:
        if self._unsaved and not self._saving and (self._urgent or not self._resting):
            self._saving = True
            self._run(self._save_all())

    async def _save_all(self) -> None:
        stored = False
        try:
            while self._unsaved and (self._urgent or not self._resting):
                self._unsaved = self._urgent = self._failed = stored = False
                if not self._resting:
                    self._resting = True
                    self._timers.after(SAVE_EVERY_S, self._rested)
                # Also after a failure: the signer may have stored what it did not confirm.
                self._version += 1
                await self._vault.keep_peers(self._version, self.book.snapshot())
                stored = True
        except (Unavailable, CallerError, Refused) as error:
            self._failed = True
            self._log.warning("peers' states not stored", reason=str(error))
        finally:
            self._saving = False
            self._unsaved = self._unsaved or not stored

    def _rested(self) -> None:
        self._resting = False
        if not self._failed:
            # Else the next change or minute tries again.
            self._save()

    def _notice(self, event: str, peer: int, seen: SeenPeer) -> None:
        name, boot = self._roster.signer(peer).name, seen.boot.hex()[:BOOT_DIGITS]
        counter = f"peer_states|{event}"
        self.counters[counter] = self.counters.get(counter, 0) + 1
        refused = event != "peer-accepted"  # an operator's acceptance serves once
        self._notices[peer] = self._notices.get(peer, 0) + refused
        if refused and self._notices[peer] > NOTICES:
            self._left_out[peer] = self._left_out.get(peer, 0) + 1
            return
        facts: dict[str, str | int | bool | list[int]] = {"head": seen.head.hex(), "boot": boot, "bar": seen.bar}
        if left_out := self._left_out.pop(peer, 0):
            facts["left_out"] = left_out
        self._effects.audit(self._audit.record(event, peer=name, version=seen.version, **facts))
        self._urgent = self._unsaved
        self._save()

    def _run(self, routine: Coroutine[Any, Any, None]) -> None:
        def ended(task: Task[None]) -> None:
            if isinstance(task.outcome, Exception):
                self._log.warning("state not told", reason=str(task.outcome))

        Task(routine, ended).start()
