"""SPEC 3.11, 3.12: when a member opens its sub-seeds of a batch that is destroyed, and whom the opened ones convict."""

from __future__ import annotations

from collections.abc import Mapping

from enclave.bodies import BodyLog
from enclave.errors import Unproven
from enclave.protocol.blame_messages import CLOSING, STOP, VIEWS, Closing, OpenedSeed, Stop, Views
from enclave.protocol.charges import Charge, Facts, judge
from enclave.protocol.presign_material import Group, SubSeeds, groups_in
from enclave.protocol.presign_rules import CONFIRMATION, PresignRules, agreed_seeds
from enclave.protocol.session import RoundMessage

Said = Mapping[tuple[int, int], RoundMessage]


class Opener:
    """Holds one batch's sub-seeds, for as long as blame may need them. Secret."""

    def __init__(self, facts: Facts, rules: PresignRules, sub_seeds: SubSeeds) -> None:
        self._facts, self._rules = facts, rules
        self._sub_seeds = sub_seeds
        self._last_round = 0
        self._opened = False

    def may_open(self, log: BodyLog, said: Said) -> bool:
        """SPEC 3.11, every condition. `said`: all messages of blame, our own among them."""
        members = self._facts.members
        stops = [said.get((STOP, j)) for j in members]
        # Everybody's signed abort, our own among them: nobody who follows the protocol has confirmed, or ever will.
        if not all(isinstance(stop, Stop) and stop.confirmation is None for stop in stops):
            return False
        # Ours too: a fork of us may have signed it.
        if any(log.known(CONFIRMATION, j) is not None for j in members) or log.conflicts:
            return False
        complete = self._complete_rounds(said)
        failing = self._rules.failing_round(self._facts, log, complete)
        self._last_round = failing
        return failing > 0 and not any(self._proves(charge) for charge in self._rules.split_group(self._facts, log))

    def open(self) -> tuple[OpenedSeed, ...]:
        """All our sub-seeds of this batch."""
        self._opened = True
        found = [OpenedSeed("subset", members, seed) for members, seed in self._sub_seeds.subsets.items()]
        return (*found, *(OpenedSeed("pair", members, seed) for members, seed in self._sub_seeds.pairs.items()))

    def knows_all(self, log: BodyLog) -> bool:
        """Whether every sub-seed of the batch is open."""
        return self._opened and not self._missing(log)

    def accuse(self, log: BodyLog) -> list[Charge]:
        """SPEC 3.12: charges against whoever opened wrongly or deviated first."""
        wrong = [charge for charge in self._rules.wrong_openings(self._facts, log) if self._proves(charge)]
        seeds = agreed_seeds(self._facts, log)
        return [*self._rules.deviations(self._facts, log, seeds, self._last_round), *wrong]

    def silent(self, log: BodyLog, said: Said) -> set[int]:
        """Who opened nothing, of those that alone could have opened what is missing."""
        if not self._opened:
            return set()
        closed = {j for j in self._facts.members if _opened(said.get((CLOSING, j)))}
        return {j for _, members in self._missing(log) for j in members} - closed

    def _complete_rounds(self, said: Said) -> int:
        """How many rounds all members have all bodies of."""
        complete = len(self._rules.rounds)
        for j in self._facts.members:
            views = said.get((VIEWS, j))
            if not isinstance(views, Views):
                return 0
            listed = {(ref.round, ref.sender) for ref in views.refs}
            for number in range(1, complete + 1):
                if not all((number, i) in listed for i in self._facts.members):
                    complete = number - 1
                    break
        return complete

    def _missing(self, log: BodyLog) -> set[Group]:
        members, t = self._facts.members, self._facts.t
        every = {group for j in members for group in groups_in(members, t, j)}
        return every - agreed_seeds(self._facts, log).keys()

    def _proves(self, charge: Charge) -> bool:
        try:
            judge(self._facts, charge)
        except Unproven:
            return False
        return True


def _opened(message: RoundMessage | None) -> bool:
    return isinstance(message, Closing) and bool(message.seeds)
