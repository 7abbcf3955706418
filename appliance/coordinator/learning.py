"""Keys that were made through other coordinators: signers list their certificates, in pages, and tell of new ones.

A certificate counts only once it has been verified against the roster. How far each signer's list has been read is on
disk, so that a restart reads only what is new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from appliance import relay
from appliance.api.certificates import CertificateRefused, verify_certificate
from appliance.coordinator.keybook import KeyBook
from appliance.coordinator.rationed import RationedLines
from appliance.store.certificates import Certificate
from policies.errors import Unavailable
from policies.roster import Roster

RETRY_S = 5.0
# After each page, so that no signer keeps us at nothing else.
PAUSE_S = 0.02

log = structlog.get_logger()


class KeyLearning:
    """Reads the signers' lists, one page of each at a time. `ask(index, question)` sends a question; `complete(index)`
    is told when the list of a signer has been read to its end."""

    def __init__(
        self,
        roster: Roster,
        keybook: KeyBook,
        ask: Callable[[int, relay.KeysAfter], None],
        complete: Callable[[int], None],
        lines: RationedLines,
    ) -> None:
        self._roster, self._keybook, self._ask, self._complete = roster, keybook, ask, complete
        self._lines = lines
        # One a signer.
        self._pages: asyncio.Queue[tuple[int, relay.KeyPage]] = asyncio.Queue(roster.n)
        self._waiting: set[int] = set()
        self._asked: dict[int, int] = {}
        self._again: set[int] = set()
        # Signers whose store did not know what was read of it: once a connection.
        self._begun_again: set[int] = set()

    def on_online(self, index: int) -> None:
        """Signer `index` is there: go on where its list was read to."""
        self._asked.pop(index, None)
        self._begun_again.discard(index)
        self.on_added(index)

    def on_added(self, index: int) -> None:
        """Signer `index` has another key."""
        if index in self._asked:
            self._again.add(index)
            return
        self._again.discard(index)
        seq, key_id = self._keybook.read_until(index)
        self._asked[index] = seq
        self._ask(index, relay.KeysAfter(seq, key_id))

    def on_page(self, index: int, page: relay.KeyPage) -> None:
        """The answer of signer `index`. One that was not asked for is dropped, and a second one."""
        if page.after not in (0, self._asked.get(index)) or index not in self._asked:
            return
        if index in self._waiting:
            # It may be of an earlier connection: the list is asked for again after it.
            self._again.add(index)
            return
        self._waiting.add(index)
        self._pages.put_nowait((index, page))

    async def run(self) -> None:
        """Take in page after page, until cancelled."""
        while True:
            index, page = await self._pages.get()
            self._waiting.discard(index)
            try:
                more = await self._take_in(index, page)
            except CertificateRefused as error:
                # Its list is not believed again before it reconnects.
                self._lines.tell(index, "error", "certificate-refused", signer=self._name(index), reason=str(error))
                continue
            except Unavailable as error:
                log.error("keys-not-learned", signer=self._name(index), reason=str(error))
                await asyncio.sleep(RETRY_S)
                more = True
            await asyncio.sleep(PAUSE_S)
            self._asked.pop(index, None)
            if more or index in self._again:
                self.on_added(index)
            else:
                self._complete(index)

    def _name(self, index: int) -> str:
        return self._roster.signer(index).name

    async def _take_in(self, index: int, page: relay.KeyPage) -> bool:
        """Verify and keep what is new; whether there is more. Raises `CertificateRefused`, `Unavailable`."""
        if page.after != self._asked.get(index, page.after):
            if index in self._begun_again:
                raise CertificateRefused("the list of keys begins again and again")
            self._begun_again.add(index)
        until = (page.after, "")
        new: list[Certificate] = []
        known: list[str] = []
        for key in page.keys:
            if key.seq <= until[0]:
                raise CertificateRefused("the numbers of a list of keys do not grow")
            until = (key.seq, key.certificate[0].acknowledgement.key_id)
            if self._keybook.knows(until[1]):
                known.append(until[1])
            else:
                new.append(key.certificate)
        await asyncio.to_thread(_verify_all, new, self._roster)
        if page.keys:
            await self._keybook.learn(index, new, known, until)
            self._lines.tell(index, "info", "keys-listed", signer=self._name(index), new=len(new), known=len(known))
        elif page.more:
            raise CertificateRefused("an empty page of keys says that there are more")
        return page.more


def _verify_all(certificates: Sequence[Certificate], roster: Roster) -> None:
    for certificate in certificates:
        verify_certificate(certificate, roster)
