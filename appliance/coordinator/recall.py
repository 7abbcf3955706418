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

from appliance.coordinator.ceremonies import Ceremonies
from appliance.coordinator.errors import SPENT_RULES, CeremonyEnded, failure
from appliance.store.accepted import CONFLICT
from enclave import wire
from policies.requests import body_digest
from policies.roster import Roster

RECALL_TIMEOUT_S = 15.0
MAX_ATTEMPTS, MAX_RECALLS = 3, 3
BUSY_PAUSE_S = 0.5
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
    """`answers`: by signer, its newest answer, None for one that has none. Who is not in it could not be asked."""

    request: wire.ClientRequest
    answers: dict[int, wire.Answer | None] = field(default_factory=dict)

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
                raise CeremonyEnded(
                    UNKNOWN,
                    f"the result of an earlier attempt may exist, and signer {names} could not be asked: try again",
                    min(missing),
                )


class Recall:
    """Asks the signers. `online()`: the indices of those that can be asked now."""

    def __init__(self, ceremonies: Ceremonies, roster: Roster, online: Callable[[], tuple[int, ...]]) -> None:
        self._ceremonies, self.roster, self._online = ceremonies, roster, online

    async def ask(self, request: wire.ClientRequest) -> Recalled:
        """What those say that are online. Raises `CeremonyEnded`; `Rejected` where the external id stands for another
        body."""
        recalled = Recalled(request)
        members = self._online()
        with self._ceremonies.open(members) as ceremony:
            ceremony.order_all(wire.RecallOrder(ceremony.id, request))
            deadline_s, silent = asyncio.get_running_loop().time() + RECALL_TIMEOUT_S, set(members)
            while silent:
                index, report = await ceremony.next(deadline_s, silent)
                match report:
                    case wire.Recalled(_, answer):
                        recalled.answers[index] = answer
                    case wire.RequestRefused(_, rule) if rule not in (CONFLICT, "busy"):
                        # It can't say for this request: it was signed too long ago, say.
                        pass
                    case _:
                        raise failure(index, report)
                silent.discard(index)
        return recalled


async def until_done(
    attempt: Callable[[After], Awaitable[T]],
    recall: Callable[[], Awaitable[tuple[T | None, After]]],
    activate: Callable[[int], Awaitable[None]],
    *,
    recall_first: bool,
    most: int = MAX_ATTEMPTS,
) -> T:
    """The result of one attempt, `most` at most, or of one that was made before, perhaps elsewhere.

    `attempt(after)` adds to `after` what may be answered to it; `recall()` gives the earlier result, or what the next
    attempt must name as `after`; `activate(signer)` has the key activated. Raises `Rejected` where a signer said no,
    else `CeremonyEnded` of the last attempt.
    """
    after: After = {}
    attempts = recalls = 0
    while True:
        try:
            if recall_first:
                value, after = await recall()
                recall_first = False
                if value is not None:
                    return value
            return await attempt(after)
        except Earlier:
            recalls += 1
            if recalls == MAX_RECALLS:
                raise
            recall_first = True
        except CeremonyEnded as error:
            attempts += 1
            if attempts == most or error.code in SPENT_RULES or error.code == UNKNOWN:
                raise
            if error.code == "key/pending":
                await activate(error.signer)
            elif error.code == "busy":
                await asyncio.sleep(BUSY_PAUSE_S)
