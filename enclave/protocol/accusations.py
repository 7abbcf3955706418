"""SPEC 0.11: what one member can prove, from the bodies that it holds and from what the others say of theirs."""

from __future__ import annotations

from enclave.bodies import BROADCAST, BodyLog
from enclave.errors import Malformed, Unproven
from enclave.protocol.blame_messages import STOP, VIEWS, Stop
from enclave.protocol.charges import Charge, Facts, Verdict, judge
from enclave.wire import decode, encode


class Accusations:
    """The charges that convict, one for each culprit; never one against ourselves (`me`)."""

    def __init__(self, facts: Facts, log: BodyLog, me: int, max_proof_bytes: int) -> None:
        self._facts, self._log, self._me = facts, log, me
        self._max_proof_bytes = max_proof_bytes
        self._proven: list[tuple[Charge, Verdict]] = []

    def __bool__(self) -> bool:
        return bool(self._proven)

    @property
    def charges(self) -> tuple[Charge, ...]:
        """What convicts."""
        return tuple(charge for charge, _ in self._proven)

    @property
    def first(self) -> Verdict:
        """The first verdict. There must be one."""
        return self._proven[0][1]

    @property
    def culprits(self) -> tuple[int, ...]:
        """Whoever is convicted."""
        return tuple(sorted({j for _, verdict in self._proven for j in verdict.culprits}))

    def add(self, charge: Charge) -> None:
        """Keep a charge that convicts somebody who is not convicted yet."""
        try:
            verdict = judge(self._facts, charge)
        except Unproven:
            return
        if set(verdict.culprits) - set(self.culprits) and self._me not in verdict.culprits:
            self._proven.append((charge, verdict))

    def add_proof(self, proof: bytes) -> None:
        """Another member's proof, or nothing; one that proves nothing is ignored."""
        if proof:
            try:
                charge = decode(proof, Charge)
            except Malformed:
                return
            self.add(charge)

    def proof(self) -> bytes:
        """What can be proved, encoded for the others; nothing where there is nothing, or it is too large to be sent."""
        for charge, _ in self._proven:
            if len(proof := encode(charge)) <= self._max_proof_bytes:
                return proof
        return b""

    def note_conflicts(self) -> None:
        """Two bodies for one place, whoever has which."""
        for pair in self._log.conflicts.values():
            self.add(Charge("two-bodies", refs=pair))

    def search(self) -> None:
        """Everything that the bodies here prove by themselves."""
        self.note_conflicts()
        for body in self._log.bodies():
            if body.sender != self._me:
                self.add(Charge("bad-body", (body,)))
        for charge in self._facts.rules.candidates(self._facts, self._log, self._me):
            self.add(charge)

    def compare_views(self, stops: dict[int, Stop], round_number: int) -> None:
        """What the members say they hold, against what they sent and why they stopped. `round_number`: our last."""
        rules = self._facts.rules
        for j in self._facts.members:
            views, stop = self._log.body(VIEWS, j), self._log.body(STOP, j)
            if views is None or stop is None or j == self._me:
                continue
            for number, kind in enumerate(rules.rounds, 1):
                # A private body is shown only while nothing that came after it exists: then it is of no use any more.
                receiver = self._me if kind.private else BROADCAST
                body = self._log.body(number, j, receiver)
                if body is not None and (not kind.private or number == round_number):
                    self.add(Charge("contradiction", (views, body)))
            if j in stops and stops[j].step:
                number = rules.stop_rounds.get(stops[j].step, stops[j].round)
                seen = (views,) if stops[j].step == "0.5" else ()
                self.add(Charge("false-stop", (stop, *seen, *self._log.round(number, self._facts.members))))

    def split(self) -> tuple[Charge, Verdict] | None:
        """A group whose members disagree, where nobody can be convicted."""
        for charge in self._facts.rules.split_group(self._facts, self._log):
            try:
                return charge, judge(self._facts, charge)
            except Unproven:
                continue
        return None
