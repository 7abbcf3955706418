"""What this enclave remembers of a client request: its attempts and its one outstanding authorization (SPEC 4.1).

In memory only: a request from before this boot is refused by its `iat` (THREATS says which one is not). How long, and
of how many: `request_book`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from enclave.errors import Refused
from enclave.gate import GateSaidNo
from enclave.lacking import Lacking
from enclave.shares import KeyFacts
from enclave.wire import Authorization, BatchAuthorization, PresignatureName
from policies.counters import NOTHING, Charge

MAX_ATTEMPTS = 3
# Refusals of one request that go into the audit chain before the first question and after each: it is never pruned,
# and an order costs a hostile coordinator nothing.
MAX_REFUSALS_AUDITED = 3


class Item(msgspec.Struct, frozen=True):
    """One hash to sign: with the child key of `path` (33 bytes), whose tweak is the scalar `epsilon` (SPEC 4.4)."""

    path: tuple[int, ...]
    child: bytes
    epsilon: int
    h: bytes


class Permitted(Protocol):
    """Whether what was permitted is so still: see `counting.Permission.again`."""

    def __call__(self, charged: Charge, *, anew: bool) -> Charge: ...


class Approval(msgspec.Struct, frozen=True):
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


class Outstanding(msgspec.Struct, frozen=True):
    """An authorization that was given out and not used; what it is for, and a presignature for each item."""

    authorization: Authorization | BatchAuthorization
    items: tuple[Item, ...]
    presignatures: tuple[PresignatureName, ...]


class Attempt(msgspec.Struct, frozen=True):
    """Which coordinator named which committee and presignatures for a request, what it calls the attempt, and what
    logs call the request. `after`: which earlier answer it says came to nothing (SPEC 4.10)."""

    coordinator: str
    ceremony: bytes
    committee: tuple[int, ...]
    presignatures: tuple[PresignatureName, ...]
    request_id: str = ""
    after: bytes | None = None


class RequestState(msgspec.Struct):
    """One client request.

    `attempt` is the newest, answered when the decision is there; `asking`: policy and gate are at it, or a key is being
    made; `asked`: how often; `approval` is their yes; `outstanding`: signed, not used; `closed`: never
    again (the gate said no, or the key was made); `weight`: the most hashes that any attempt was for that was not
    refused; `client_id`: whose it is.
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
    lacking: Lacking = msgspec.field(default_factory=Lacking)
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

    def is_approved(self, committee: tuple[int, ...], now_s: float) -> bool:
        """Whether policy and gate have said yes to it for this committee, and that still counts."""
        approval = self.approval
        return approval is not None and approval.committee == committee and approval.until_s > now_s

    def lapse(self) -> None:
        """What was approved counts no longer."""
        self.approval = None
        self.withdraw()

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
