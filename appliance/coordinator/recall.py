"""What signers answered before under a request's name, perhaps through another coordinator (SPEC 4.10).

Where all of a committee still have their answers of one attempt, that attempt's result is the request's. Where one
member says that it has none, the attempt is dead: that member has withdrawn what it had authorised. Where one that may
have one is away, nothing is known, and nothing is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from appliance.coordinator.ceremonies import Ceremonies, Ceremony
from appliance.coordinator.errors import SPENT_RULES, CeremonyEnded, GatesTakeTime, Rejected, failure
from appliance.coordinator.standing import Standing
from appliance.store.accepted import CONFLICT
from enclave import wire
from policies.requests import body_digest
from policies.roster import Roster

RECALL_TIMEOUT_S = 15.0
MAX_ATTEMPTS, MAX_RECALLS = 3, 3
BUSY_PAUSE_S = 0.5
# How long those are waited for that are left out elsewhere, once all others have answered, a
# committee's number at least.
GRACE_S = 1.0
UNKNOWN = "earlier-attempt"

T = TypeVar("T")
K = TypeVar("K", bound=wire.Wire)

After = dict[int, bytes]
"""By signer, the ceremony of its newest answer, which is known to have come to nothing."""


class Earlier(CeremonyEnded):
    """Signer `signer` has answered this request before: recall what came of it."""

    def __init__(self, signer: int) -> None:
        super().__init__("answered", "a signer has answered this request before", signer)


@dataclass
class Recalled:
    """`answers`: by signer, its newest answer, None for one that has none. Who is not in it could not be asked, or is
    one of the `refused`."""

    request: wire.ClientRequest
    answers: dict[int, wire.Answer | None] = field(default_factory=dict)
    refused: dict[int, wire.RequestRefused] = field(default_factory=dict)

    def refusing(self, rule: str) -> int:
        """How many signers refused by this rule."""
        return sum(report.rule == rule for report in self.refused.values())

    def after(self) -> After:
        """What the next attempt must name."""
        return {j: answer.report.ceremony for j, answer in self.answers.items() if answer is not None}

    def of_kind(self, kind: type[K]) -> dict[int, K]:
        """By signer, the answers to this very body that are a `kind`."""
        body = body_digest(self.request.path, self.request.body)
        return {
            j: answer.report
            for j, answer in self.answers.items()
            if answer is not None and answer.kept.body == body and isinstance(answer.report, kind)
        }

    def complete(self, kind: type[K], is_committee: Callable[[tuple[int, ...]], bool]) -> list[dict[int, K]]:
        """The answers of every attempt that all of its committee have answered with a `kind`.

        Raises `CeremonyEnded` where there is none, and one may exist that a signer has which could not be asked.
        """
        attempts: dict[tuple[bytes, tuple[int, ...]], dict[int, K]] = {}
        for j, report in self.of_kind(kind).items():
            answer = self.answers[j]
            if answer is None:
                continue
            committee = answer.kept.committee
            if is_committee(committee) and j in committee:
                attempts.setdefault((answer.report.ceremony, committee), {})[j] = report
        whole = [each for (_, committee), each in attempts.items() if len(each) == len(committee)]
        if not whole:
            self._check_known(attempts)
        return whole

    def _check_known(self, attempts: Iterable[tuple[bytes, tuple[int, ...]]]) -> None:
        for ceremony, committee in attempts:
            given = {j for j, answer in self.answers.items() if answer and answer.report.ceremony == ceremony}
            missing = set(committee) - given
            if missing and not missing & self.answers.keys():
                names = ", ".join(map(str, sorted(missing)))
                busy = any(j in self.refused and self.refused[j].rule == "busy" for j in missing)
                raise CeremonyEnded(
                    "busy" if busy else UNKNOWN,
                    f"the result of an earlier attempt may exist, and signer {names} could not be asked: try again",
                    min(missing),
                )


class Recall:
    """Asks the signers. `online()`: the indices of those that can be asked now."""

    def __init__(
        self, ceremonies: Ceremonies, roster: Roster, online: Callable[[], tuple[int, ...]], standing: Standing
    ) -> None:
        """Those that `standing` leaves out are asked, too, and not waited for."""
        self._ceremonies, self.roster, self._online, self._standing = ceremonies, roster, online, standing

    @property
    def needed(self) -> int:
        """So many answers leave out no whole committee."""
        return self.roster.n - self.roster.committee_size + 1

    @property
    def always(self) -> bool:
        """Whether committees can be disjoint: then a new request may have been answered elsewhere, too, by signers of
        whom none is asked to sign here."""
        return self.roster.n >= 2 * self.roster.committee_size

    async def ask(self, request: wire.ClientRequest) -> Recalled:
        """What those say that are online. Who is silent, away, busy or makes no sense counts as not asked.

        Raises `CeremonyEnded` where fewer than `needed` answer; `Rejected` where more signers than may be corrupted say
        that the external id stands for another body.
        """
        recalled = Recalled(request)
        members = self._online()
        with self._ceremonies.open(members) as ceremony:
            silent = {j for j in members if self._is_ordered(ceremony, j, request)}
            deadline_s = asyncio.get_running_loop().time() + RECALL_TIMEOUT_S
            while silent:
                enough = len(recalled.answers) >= self.roster.committee_size
                if enough and silent <= self._standing.avoided():
                    deadline_s = min(deadline_s, asyncio.get_running_loop().time() + GRACE_S)
                try:
                    index, report = await ceremony.next(deadline_s, silent)
                except CeremonyEnded as error:
                    if error.code == "timeout":
                        break
                    ceremony.drop(error.signer)
                    silent.discard(error.signer)
                    self._standing.failed(error.signer, error.code)
                    continue
                if index in silent:
                    silent.discard(index)
                    self._take(recalled, index, report)
            for index in silent:
                self._standing.failed(index, "timeout")
        if len(recalled.answers) < self.needed:
            raise self._too_few(recalled)
        return recalled

    def _is_ordered(self, ceremony: Ceremony, index: int, request: wire.ClientRequest) -> bool:
        try:
            ceremony.order(index, wire.RecallOrder(ceremony.id, request))
        except CeremonyEnded:
            return False
        return True

    def _take(self, recalled: Recalled, index: int, report: wire.ReportBody) -> None:
        """What signer `index` says. Raises `Rejected`."""
        match report:
            case wire.Recalled(_, answer):
                recalled.answers[index] = answer
            case wire.RequestRefused(_, rule):
                # It can't say for this request: it was signed too long ago, say.
                recalled.refused[index] = report
                if rule == CONFLICT and recalled.refusing(CONFLICT) > self.roster.tolerate:
                    raise failure(index, report)
            case _:
                self._standing.failed(index, "unexpected-report")

    def _too_few(self, recalled: Recalled) -> CeremonyEnded | Rejected:
        """Why nothing is known: what more signers say than may be corrupted, or that too few say anything."""
        for index, report in recalled.refused.items():
            if recalled.refusing(report.rule) > self.roster.tolerate:
                return failure(index, report)
        code = "busy" if recalled.refusing("busy") else UNKNOWN
        missing = ", ".join(str(j) for j in self.roster.indices if j not in recalled.answers)
        return CeremonyEnded(
            code,
            f"{self.needed} signers must say what they answered to this request before, {len(recalled.answers)} did; "
            f"not so signer {missing}: try again once more of them are there",
        )


async def until_done(
    attempt: Callable[[After], Awaitable[T]],
    recall: Callable[[], Awaitable[tuple[T | None, After]]],
    activate: Callable[[int], Awaitable[None]],
    gates_decided: Callable[[After], Awaitable[None]],
    *,
    recall_first: bool,
    most: int = MAX_ATTEMPTS,
) -> T:
    """The result of one attempt, `most` at most, or of one that was made before, perhaps elsewhere.

    `attempt(after)` adds to `after` what may be answered to it; `recall()` gives the earlier result, or what the next
    attempt must name as `after`; `activate(signer)` has the key activated; `gates_decided(after)` returns once no gate
    needs time any more, as one did where an attempt raised `GatesTakeTime`. Raises `Rejected` where a signer said no,
    else `CeremonyEnded` of the last attempt.
    """
    after: After = {}
    attempts = recalls = 0
    reason: CeremonyEnded | None = None
    while True:
        try:
            if recall_first:
                value, after = await recall()
                recall_first = False
                if value is not None:
                    return value
            await gates_decided(after)
            return await attempt(after)
        except GatesTakeTime:
            continue
        except Earlier:
            recalls += 1
            if recalls == MAX_RECALLS:
                raise
            recall_first = True
        except CeremonyEnded as error:
            attempts += 1
            # Signers that are still at an earlier attempt say little; what ended that one says why.
            if error.code != "busy" or reason is None:
                reason = error
            if attempts == most or error.code in SPENT_RULES or error.code == UNKNOWN:
                raise reason from None
            if error.code == "key/pending":
                await activate(error.signer)
            elif error.code == "busy":
                await asyncio.sleep(BUSY_PAUSE_S)
