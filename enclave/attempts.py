"""What this enclave remembers of each client request: its attempts and its one outstanding authorization (SPEC 4.1).

In memory only. A request from before this boot is refused by its `iat`, so nothing needs to survive a restart. One that
was carried out is forgotten when neither its JWS nor an authorization of it can be valid any more; one that was not,
perhaps because another signer's gate takes its time, when the gate's deadline is over, too (SPEC 6.9), or when there
is no room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from enclave.answers import Answers
from enclave.errors import Refused
from enclave.gate import GateSaidNo
from enclave.lacking import Lacking
from enclave.shares import KeyFacts
from enclave.wire import Answer, Authorization, BatchAuthorization, BatchShareReport, PresignatureName
from policies.counters import NOTHING, Charge

MAX_ATTEMPTS = 3
MAX_REQUESTS = 20_000
# Hashes of all remembered requests together: a batch counts for as many as it names.
MAX_ITEMS = 200_000
# Those of one client: nobody fills the memory alone.
MAX_ITEMS_OF_CLIENT = MAX_ITEMS // 2
FORGOTTEN_AT_ONCE = 256
# Requests of one client that were signed for longer than usual, to wait for approvals.
MAX_WAITING = 256
# Refusals of one request that go into the audit chain before the first question and after each: it is never pruned,
# and an order costs a hostile coordinator nothing.
MAX_REFUSALS_AUDITED = 3


@dataclass(frozen=True)
class Item:
    """One hash to sign: with the child key of `path` (33 bytes), whose tweak is the scalar `epsilon` (SPEC 4.4)."""

    path: tuple[int, ...]
    child: bytes
    epsilon: int
    h: bytes


class Permitted(Protocol):
    """Whether what was permitted is so still: see `counting.Permission.again`."""

    def __call__(self, charged: Charge, *, anew: bool) -> Charge: ...


@dataclass(frozen=True)
class Approval:
    """A request that policy and gate have said yes to, for one committee, with all that its terms need.

    `items`: one, or those of a batch (SPEC 4.7). `permitted`: what is to be charged for it (SPEC 7.3); raises
    `Refused` where that yes holds no longer: the label was frozen, the client's key revoked, or the policy in force
    now says no. `approvers`: the clients whose approvals of it verified (SPEC 4.13).
    """

    client_id: str
    key: KeyFacts
    batch: bool
    items: tuple[Item, ...]
    committee: tuple[int, ...]
    until_s: int
    permitted: Permitted
    approvers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outstanding:
    """An authorization that was given out and not used; what it is for, and a presignature for each item."""

    authorization: Authorization | BatchAuthorization
    items: tuple[Item, ...]
    presignatures: tuple[PresignatureName, ...]


@dataclass(frozen=True)
class Attempt:
    """Which coordinator named which committee and presignatures for a request, what it calls the attempt, and what
    logs call the request. `after`: which earlier answer it says came to nothing (SPEC 4.10)."""

    coordinator: str
    ceremony: bytes
    committee: tuple[int, ...]
    presignatures: tuple[PresignatureName, ...]
    request_id: str = ""
    after: bytes | None = None


@dataclass
class RequestState:
    """One client request.

    `attempt` is the newest, answered when the decision is there; `asking`: policy and gate are at it, or a key is being
    made; `asked`: how often; `approval` is their yes; `outstanding`: signed, not used; `closed`: never
    again (the gate said no, or the key was made); `weight`: the most hashes that any attempt was for that was not
    refused; `client_id`: whose they are, empty for a key's request, which has none.
    `name`, `body`: SPEC 4.10, empty until they are known; `answering`: a share is computed, or a key made.
    `lacking`: with which approvals it lacked some; `waits`: it was signed for long.
    `refusals`: audited since the last question; `unaudited`: refusals that no audit entry tells of yet. `noticed`:
    whether it counts among refused requests.
    `verified_s`: when its JWS verified; `fresh_until_s`: until then it must be remembered; `done`: it was carried out.
    `pending_until_s`: the gate has said that it needs time, and has it until then; `said_no`: why it refused;
    `consent_until_s`: the gate's yes to making a key counts until then.
    `charged`: what limits count of it, as an audit entry says; `release` frees what is held for it (SPEC 7.3).
    """

    digest: bytes
    keep_until_s: float
    fresh_until_s: float
    client_id: str = ""
    waits: bool = False
    verified_s: int = 0
    pending_until_s: int = 0
    consent_until_s: int = 0
    said_no: str = ""
    done: bool = False
    attempts: int = 0
    asked: int = 0
    closed: bool = False
    asking: bool = False
    weight: int = 0
    attempt: Attempt | None = None
    approval: Approval | None = None
    outstanding: Outstanding | None = None
    name: bytes = b""
    body: bytes = b""
    answering: bool = False
    refusals: int = 0
    unaudited: int = 0
    noticed: bool = False
    lacking: Lacking = field(default_factory=Lacking)
    charged: Charge = NOTHING
    release: Callable[[], None] | None = None

    def check_open(self) -> None:
        """Raises `Refused` where the request was decided for good."""
        if self.said_no:
            raise GateSaidNo(self.said_no)
        if self.closed:
            raise Refused("request/replayed", "this request was decided before")

    def is_needed(self, now_s: float) -> bool:
        """Whether it would do harm, and not only delay, to forget it."""
        outstanding = self.outstanding
        return (
            self.fresh_until_s >= now_s
            or self.asking
            or self.answering
            or (outstanding is not None and outstanding.authorization.expires_at_s >= now_s)
        )

    def withdraw(self) -> None:
        """What was authorised and not used can't be used any more."""
        self.outstanding = None
        if self.release is not None:
            self.release()

    def check_permitted(self, *, anew: bool = False) -> Charge:
        """Whether what was approved may still be done, and what is to be charged for it; `anew`: by all that counts
        now. Raises `Refused`."""
        if self.approval is None:
            raise Refused("authorization", "nothing was approved")
        charge = self.approval.permitted(self.charged, anew=anew)
        return NOTHING if self.charged else charge

    def count_refusal(self) -> int | None:
        """Another order was refused. How many refusals were left out since the last entry that tells of one, where this
        one belongs into the audit chain, else None."""
        if self.refusals >= MAX_REFUSALS_AUDITED:
            self.unaudited += 1
            return None
        left_out, self.unaudited = self.unaudited, 0
        self.refusals += 1
        return left_out

    def count_question(self) -> None:
        """The request is about to be understood and put to policy and gate. Raises `Refused` beyond three times: nobody
        is worn down."""
        if self.asked >= MAX_ATTEMPTS:
            raise Refused("request/attempts", f"this request was put to the gate {MAX_ATTEMPTS} times")
        self.asked += 1

    def check_attempts(self) -> None:
        """Raises `Refused` where three were authorised."""
        if self.attempts >= MAX_ATTEMPTS:
            raise Refused("request/attempts", f"this request was attempted {MAX_ATTEMPTS} times")

    def count_attempt(self, outstanding: Outstanding) -> None:
        """Let this authorization be outstanding; an older one can't be used any more. Raises `Refused` beyond three."""
        self.check_attempts()
        self.attempts += 1
        self.outstanding = outstanding


class RequestBook:
    """All requests that can still be valid, by digest."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._clock = wall_clock
        self._requests: dict[bytes, RequestState] = {}
        self._by_attempt: dict[tuple[str, bytes], RequestState] = {}
        self._items = 0
        self._items_of: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._next_sweep_s = 0.0
        self.answers = Answers()

    def __len__(self) -> int:
        return len(self._requests)

    def get(self, digest: bytes) -> RequestState | None:
        """The request's state, if it was opened and can still be valid."""
        state = self._requests.get(digest)
        return state if state is not None and state.keep_until_s >= self._clock() else None

    def open(
        self, digest: bytes, keep_until_s: float, fresh_until_s: float, client_id: str = "", waits: bool = False
    ) -> RequestState:
        """The request's state, new or known. `waits`: it was signed for long, and so may be remembered for days. Raises
        `Refused` where the book is full, too many of the client wait, or it is closed."""
        self._sweep()
        state = self.get(digest)
        if state is None:
            if not self._make_room(1, 0):
                raise Refused("busy", f"{MAX_REQUESTS} requests are remembered; try again in some minutes")
            if waits:
                if self._waiting[client_id] >= MAX_WAITING:
                    raise Refused("busy", f"{MAX_WAITING} requests of {client_id} wait for approvals")
                self._waiting[client_id] += 1
            now_s = int(self._clock())
            state = RequestState(digest, keep_until_s, fresh_until_s, client_id, waits, now_s)
            self._requests[digest] = state
        state.check_open()
        return state

    def begin(self, state: RequestState, attempt: Attempt) -> None:
        """`attempt` is now the newest one of the request. Raises `Refused` where too much would be remembered."""
        self._weigh(state, len(attempt.presignatures))
        self._forget_attempt(state)
        state.attempt = attempt
        self._by_attempt[attempt.coordinator, attempt.ceremony] = state

    def settle(self, state: RequestState) -> None:
        """An order was answered, and nothing was authorised: of its hashes only those are remembered that are approved
        or were answered. Else whoever is refused, again and again, would keep everybody else out."""
        if state.asking or state.answering:
            return
        if state.approval is not None and state.approval.until_s <= self._clock():
            state.approval = None
            state.withdraw()
        if state.attempt is not None:
            state.attempt = replace(state.attempt, presignatures=())
        kept, answer = len(state.approval.items) if state.approval is not None else 0, self.answers.newest(state.name)
        if answer is not None and isinstance(answer.report, BatchShareReport):
            kept = max(kept, len(answer.report.s))
        self._set_weight(state, min(state.weight, kept))

    def _weigh(self, state: RequestState, items: int) -> None:
        """Never less than before: an approval remembers as many hashes as the attempt that it came with."""
        weight = max(state.weight, items)
        more = weight - state.weight
        if more and self._items_of[state.client_id] + more > MAX_ITEMS_OF_CLIENT:
            raise Refused("busy", f"{MAX_ITEMS_OF_CLIENT} hashes of {state.client_id} are remembered; try again later")
        if not self._make_room(0, more, state):
            raise Refused("busy", f"{MAX_ITEMS} hashes are remembered; try again in some minutes")
        self._set_weight(state, weight)

    def _set_weight(self, state: RequestState, weight: int) -> None:
        self._items += weight - state.weight
        self._items_of[state.client_id] += weight - state.weight
        state.weight = weight

    def claim(self, state: RequestState, name: bytes, body: bytes, stored: Answer | None) -> None:
        """The request asks for `body` under `name` (SPEC 4.10). `stored`, and what is raised: see `Answers.claim`."""
        if stored is not None and isinstance(stored.report, BatchShareReport):
            self._weigh(state, len(stored.report.s))
        self.answers.claim(state, name, body, stored)
        state.name, state.body = name, body

    def abandon(self, coordinator: str, ceremony: bytes) -> None:
        """Withdraw the unused authorization of an attempt."""
        state = self._by_attempt.get((coordinator, ceremony))
        if state is not None:
            state.withdraw()

    def _forget_attempt(self, state: RequestState) -> None:
        if state.attempt is not None:
            self._by_attempt.pop((state.attempt.coordinator, state.attempt.ceremony), None)

    def _sweep(self) -> None:
        now = self._clock()
        if now >= self._next_sweep_s or len(self._requests) >= MAX_REQUESTS:
            self._next_sweep_s = now + 10.0
            for state in list(self._requests.values()):
                if state.keep_until_s < now or (state.done and not state.is_needed(now)):
                    self._forget(state)

    def _make_room(self, requests: int, items: int, but: RequestState | None = None) -> bool:
        """Whether there is room for so many more, once the oldest were forgotten that are only waited for; `but` is
        not."""

        def fits() -> bool:
            return len(self._requests) + requests <= MAX_REQUESTS and self._items + items <= MAX_ITEMS

        if not fits():
            now = self._clock()
            idle = [each for each in self._requests.values() if each is not but and not each.is_needed(now)]
            for number, state in enumerate(idle):
                # Some more than there must be: looking through all of them takes its time.
                if number >= FORGOTTEN_AT_ONCE and fits():
                    break
                self._forget(state)
        return fits()

    def _forget(self, state: RequestState) -> None:
        del self._requests[state.digest]
        self._set_weight(state, 0)
        if state.waits:
            self._waiting[state.client_id] -= 1
        self._forget_attempt(state)
        self.answers.forget(state.name, state.digest)
