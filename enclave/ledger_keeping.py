"""SPEC 7.5, 6.6: the counters are what the audit chain says was charged. How they are kept, and brought back.

A sealed record of them is stored every minute in which something was charged, so that a restart reads the end of the
chain alone. Which record is handed over decides nothing but how much is read: it must lie on the chain, and the chain
is that whose end peers have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from enclave.audit import AuditLog, ChainEnd, entry_hash
from enclave.counters_record import CountersRecord, restore, snapshot
from enclave.counting_clock import Anchor
from enclave.effects import Effects
from enclave.errors import CallerError, KeymootError, Refused, Unavailable
from enclave.ledger import Ledger
from enclave.log import Log
from enclave.peer_clocks import PeerClocks
from enclave.shares import Vault
from enclave.tasks import Promise, Task, Timers
from enclave.wire import AuditEntry, AuditPage, Record, WantAudit

KEEP_EVERY_S = 60.0
KEEP_EVERY_CHARGES = 2000
CLOCK_SET_S = 5
# A store commits within milliseconds, and is asked about a second after a charge.
MOST_UNSTORED_S = 30
START = ChainEnd(0, bytes(32))


class _Charged(msgspec.Struct, frozen=True):
    """What counts of an audit entry; other facts are passed over."""

    time: int
    counted_at: int
    peers_at: int | None = None
    charged: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()


class LedgerKeeping:
    """Brings `ledger` back once a boot, when it is asked for first, and keeps it from then on."""

    def __init__(
        self,
        ledger: Ledger,
        audit: AuditLog,
        vault: Vault,
        effects: Effects,
        timers: Timers,
        log: Log,
        wanted: Callable[[], bool],
        peers: PeerClocks,
    ) -> None:
        """`wanted()`: whether decisions depend on it now; if not, nothing is read before one does. `peers`: nothing is
        known before their clocks agree, of which `on_peers` is told."""
        self._ledger, self._audit, self._vault, self._effects = ledger, audit, vault, effects
        self._timers, self._log, self._wanted, self._peers = timers, log, wanted, peers
        self._records: Sequence[Record] = ()
        self._known = self._settled = self._attached = self._reading = self._keeping = False
        self._reason = "it was not read from the store yet"
        self._waiting: list[Promise[None]] = []
        self._page: Promise[AuditPage] | None = None
        self._kept = self._kept_seq = 0
        # The latest pair of times that the chain or a record tells of.
        self._anchor: Anchor | None = None
        # The newest entry that tells of a charge, and an older one or the same that is not known to be stored: since
        # when.
        self._charged_seq = 0
        self._unstored: tuple[int, int] | None = None

    def on_attached(self, records: Sequence[Record]) -> None:
        """The signer is there, with what it has of counters."""
        self._attached = True
        if not self._known:
            self._records = records
            self._kept_seq = max((record.version for record in records), default=0)
            if self._wanted():
                self.begin()

    def on_detached(self) -> None:
        """The signer went away; what was being read is read again."""
        self._attached, page = False, self._page
        if page is not None:
            page.reject(Unavailable("the signer process went away", "it restarts by itself"))

    def on_page(self, page: AuditPage) -> None:
        """The entries that were asked for. Raises `CallerError` where none were."""
        if self._page is None:
            raise CallerError("a page of the audit chain that nobody asked for")
        self._page.resolve(page)

    def begin(self) -> None:
        """Read now: it will be needed."""
        if not self._known and not self._reading and self._attached:
            self._reading = True
            Task(self._read(), self._on_read).start()

    @property
    def unknown(self) -> str:
        """Why what counts now is not known; empty where it is."""
        return self._peers.doubt if self._known else self._reason

    @property
    def unstored(self) -> str:
        """Why nothing more may be charged; empty where it may. A signer process that never says that a charge is
        stored would keep peers from learning of it, and could leave it out after a restart."""
        # SPEC 7.6
        if self._unstored is None:
            return ""
        (seq, since_s), now_s, stored = self._unstored, self._ledger.clock.now_s(), self._audit.stored.version
        if stored >= min(seq, self._audit.seq):
            left = stored < min(self._charged_seq, self._audit.seq)
            self._unstored = (self._charged_seq, now_s) if left else None
            return ""
        if now_s - since_s <= MOST_UNSTORED_S:
            return ""
        return f"for {now_s - since_s} s the signer process has not said that what was charged is stored: see its log"

    async def known(self) -> None:
        """Returns once everything that was charged is in the ledger, or cannot be for now: `unknown` says why."""
        if not self._known and self._attached:
            promise: Promise[None] = Promise()
            self._waiting.append(promise)
            self.begin()
            await promise

    # --- back from the store ---

    def _on_read(self, task: Task[None]) -> None:
        self._reading = False
        if isinstance(task.outcome, KeymootError):
            self._reason = str(task.outcome)[:300]
            self._ledger.clear()
            self._log.warning("counters not read", reason=self._reason)
        else:
            self._known, self._records = True, ()
            self._settle()
        waiting, self._waiting = self._waiting, []
        for promise in waiting:
            promise.resolve(None)

    def on_peers(self, peers_s: float) -> None:
        """SPEC 7.8: the peers' clocks agree; the time of limits goes on from there, once the counters are read, too."""
        self._ledger.clock.hear(peers_s)
        if self._settled:
            self._tell_clock()
        self._settle()

    def _settle(self) -> None:
        if self._known and not self._settled and not self._peers.doubt:
            self._settled = True
            self._ledger.clock.go_on_from(self._anchor)
            self._tell_clock()
            self._timers.after(KEEP_EVERY_S, self._on_time)

    async def _read(self) -> None:
        """SPEC 7.5. Raises `Refused`, `Unavailable`."""
        end = self._audit.at_boot
        since = await self._restore()
        if not (since.version <= end.version and await self._fold(since, end)):
            # Not a point of this chain: an older or another one's record.
            self._log.warning("counters are read from the whole audit chain", seq=end.version)
            self._ledger.clear()
            self._anchor = None
            if not await self._fold(START, end):
                raise Refused("policy/limits", "the store's audit chain does not end where it said: restore the store")
        self._kept = self._ledger.charged
        self._log.info("counters read", counters=len(self._ledger), entries=end.version - since.version)

    async def _restore(self) -> ChainEnd:
        """What the records hold, `START` where they hold nothing whole."""
        self._ledger.clear()
        parts: list[CountersRecord] = []
        for record in self._records:
            try:
                parts.append(await self._vault.open_counters(record))
            except (CallerError, Refused) as error:
                self._log.warning("a record of counters cannot be opened", reason=str(error)[:300])
                break
        restored = restore(self._ledger, parts)
        if restored is None:
            self._anchor = None
            return START
        since, self._anchor = restored
        return since

    async def _fold(self, since: ChainEnd, end: ChainEnd) -> bool:
        """Add what the entries after `since` say. Whether they lead to `end`. Raises `Unavailable`."""
        seq, head = since
        while seq < end.version:
            for entry in (await self._ask(seq)).entries:
                seq += 1
                if entry.seq != seq or entry.hash != entry_hash(head, seq, entry.body):
                    return False
                head = entry.hash
                self._fold_entry(entry)
                if seq == end.version:
                    break
        return head == end.head

    async def _ask(self, after: int) -> AuditPage:
        self._page = Promise()
        self._effects.emit(WantAudit(after))
        try:
            page = await self._page
        finally:
            self._page = None
        if not page.entries:
            raise Unavailable(f"the store has no audit entry {after + 1}", "restore it from a backup")
        return page

    def _fold_entry(self, entry: AuditEntry) -> None:
        if b'"counted_at":' not in entry.body:
            return
        # A reason may quote the name, and a store may invent entries: only at its end the chain proves itself.
        try:
            facts = msgspec.json.decode(entry.body, type=_Charged)
            counts = [_count(text) for text in facts.charged]
        except (msgspec.MsgspecError, ValueError) as error:
            raise Refused("policy/limits", f"audit entry {entry.seq} cannot be read: {error}"[:300]) from None
        self._anchor = Anchor(facts.counted_at, facts.time, facts.peers_at)
        self._ledger.fold(facts.counted_at, counts, facts.destinations)

    # --- to the store ---

    def on_charge(self) -> None:
        """Something was charged, and the chain says when: in its next entry."""
        self._anchor = self._ledger.clock.now()
        self._charged_seq = self._audit.seq + 1
        if self._unstored is None:
            self._unstored = self._charged_seq, self._anchor.counted_s
        if self._ledger.charged - self._kept >= KEEP_EVERY_CHARGES:
            self._keep()

    def _on_time(self) -> None:
        self._timers.after(KEEP_EVERY_S, self._on_time)
        self._tell_clock()
        self._keep()

    def _tell_clock(self) -> None:
        """SPEC 7.2: the wall clock was set, or counted time is further behind the peers' than the chain knows; it says
        so now, for the next start."""
        now = self._ledger.clock.now()
        if self._anchor is None or not self._attached:
            return
        set_by_s = (now.wall_s - self._anchor.wall_s) - (now.counted_s - self._anchor.counted_s)
        was_set = abs(set_by_s) > CLOCK_SET_S
        if was_set:
            self._log.warning("the clock was set: limits count on by the time that has passed", seconds=set_by_s)
        if was_set or now.behind_s() > self._anchor.behind_s() + CLOCK_SET_S:
            self._anchor = now
            self._effects.audit(self._audit.record("clock", set_by_s=set_by_s, **now.facts()))

    def _keep(self) -> None:
        # A newer record takes an older one's place, never the other way round.
        due = self._ledger.charged != self._kept and self._audit.seq > self._kept_seq
        if due and not self._keeping and self._attached:
            self._keeping = True
            Task(self._store(), self._on_kept).start()

    async def _store(self) -> None:
        charged, end = self._ledger.charged, ChainEnd(self._audit.seq, self._audit.head)
        # Also where it fails: the signer may have stored what it did not confirm.
        self._kept_seq = end.version
        await self._vault.keep_counters(snapshot(self._ledger, end))
        self._kept = charged

    def _on_kept(self, task: Task[None]) -> None:
        self._keeping = False
        if isinstance(task.outcome, KeymootError):
            self._log.warning("counters not stored", reason=str(task.outcome)[:300])


def _count(text: str) -> tuple[str, int, int]:
    """Key, window in seconds and amount, of `AMOUNT NAME WINDOWs …`. Raises `ValueError`."""
    amount, name, window, *_ = text.split(" ")
    key, window_s = text[len(amount) + 1 :], int(window.removesuffix("s"))
    if int(amount) < 1 or window_s < 1 or not name:
        raise ValueError(f"not a count: {text[:100]}")
    return key, window_s, int(amount)
