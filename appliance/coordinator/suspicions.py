"""Groups in which somebody is to blame, without anybody knowing who: some of a group are left out for a while.

Either somebody cheated (SPEC 3.3); as with convictions, one enclave's word is not enough then: `t + 1` others of one
ceremony must have named the group. Or a batch came to no end: somebody was silent, or a link broke. Who has been in
most such groups is left out first, so that one who spoils whatever it has a part in is soon the one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from enclave import wire
from policies.roster import Roster

MAX_WORDS = 64
CODE = "split-group"
UNFINISHED = "unfinished-batch"


class Suspicions:
    """Counts groups by member. `leave_out(index, code)`: this signer is left out for a while."""

    def __init__(self, roster: Roster, leave_out: Callable[[int, str], None]) -> None:
        self._roster, self._leave_out = roster, leave_out
        # By reporter, so that none can push out another's: ceremonies and their groups, newest last.
        self._words: dict[int, dict[bytes, tuple[int, ...]]] = {}
        self._settled: dict[bytes, None] = {}
        self._groups: Counter[int] = Counter()

    def announced(self, reporter: int, report: wire.Convicted) -> None:
        """The enclave of `reporter` names a group, or convicts."""
        group = report.group
        known = set(group) <= set(self._roster.indices)
        if report.culprits or not group or not known or report.context in self._settled:
            return
        words = self._words.setdefault(reporter, {})
        words[report.context] = group
        if len(words) > MAX_WORDS:
            del words[next(iter(words))]
        said = sum(each.get(report.context) == group for each in self._words.values())
        if said > self._roster.tolerate:
            self._settle(report.context, group)

    def _settle(self, context: bytes, group: tuple[int, ...]) -> None:
        for words in self._words.values():
            words.pop(context, None)
        self._settled[context] = None
        if len(self._settled) > MAX_WORDS:
            del self._settled[next(iter(self._settled))]
        self._leave_out_some(group, CODE)

    def unfinished(self, group: Collection[int]) -> None:
        """A batch came to no end, and one of `group` is to blame."""
        self._leave_out_some(group, UNFINISHED)

    def _leave_out_some(self, group: Collection[int], code: str) -> None:
        self._groups.update(group)
        spare = self._roster.n - self._roster.committee_size
        for index in sorted(group, key=lambda one: (-self._groups[one], one))[:spare]:
            self._leave_out(index, code)
