"""What an answer is worth to an enclave, and everything that is wrong with it, each thing by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from appliance.gate.check.keys import Keys, signed_by
from appliance.gate.check.questions import Question
from enclave.wire import GateReply, GateUnreachable
from policies.gate_messages import ANSWER_TYPE, Answer, parse_time
from policies.json_strict import JsonInvalid, parse_as

TOLERANCE_S = 300
RETRIED = frozenset({429, 502, 503, 504})
MAX_SIGNATURES = 16
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}")


class Decision(StrEnum):
    """What an enclave makes of an answer. `nothing`: whatever it was, it counts as a refusal."""

    YES = "yes"
    NO = "no"
    PENDING = "pending"
    NOTHING = "nothing"


class Part(StrEnum):
    """What can be wrong with an answer."""

    STATUS = "answer-status"
    SIGNATURE = "answer-signature"
    REFLECTED = "answer-reflected"
    TIMESTAMP = "answer-timestamp"
    FORM = "answer-form"
    ECHO = "answer-echo"
    DRY_RUN = "answer-dry-run"
    EXPIRY = "answer-expiry"


@dataclass(frozen=True)
class Judged:
    """`status` 0: there was no answer, `unreachable` why, as `GateUnreachable.code`. `faults`: by part. `lives_s`: of a
    yes. `retry_after_s`: of a 202, 0 without."""

    decision: Decision
    status: int
    faults: dict[Part, str] = field(default_factory=dict)
    answer: Answer | None = None
    lives_s: int = 0
    retry_after_s: int = 0
    unreachable: str = ""

    @property
    def lost(self) -> bool:
        """Whether there was no answer, or none but: not now."""
        return self.status == 0 or self.status in RETRIED

    @property
    def agreed(self) -> bool:
        """Whether it says yes, be the answer good for an enclave or not."""
        return self.decision is Decision.YES or (self.answer is not None and self.answer.allowed)

    @property
    def hung(self) -> bool:
        """Whether the connection was held until time was up."""
        return self.unreachable == "timeout"

    @property
    def refused(self) -> bool:
        """Whether the status says no, once and for all."""
        return 400 <= self.status < 500 and self.status not in RETRIED

    @property
    def said(self) -> str:
        """The reason of a no, as an enclave passes it on."""
        if self.answer is None:
            return ""
        status = self.answer.status
        return status.reason or status.message or str(status.code)

    @property
    def told(self) -> str:
        """In a few words, for a finding."""
        if self.decision is Decision.NO:
            return f"a no ({self.said[:100] or 'without a reason'})" if self.answer else f"HTTP {self.status}"
        if self.decision is not Decision.NOTHING:
            return {"yes": "a yes", "pending": "202, pending"}[self.decision.value]
        return "; ".join(self.faults.values())


def looks_like(judged: Judged) -> str:
    """What it means that a question was neither decided nor turned away."""
    if judged.hung:
        return "A refusal, but not before the deadline: the signer asks again and again, each try until time is up."
    again = judged.status in RETRIED or judged.unreachable == "connect"
    return "A refusal, but it looks like a crash" + (
        ", and the signer asks again until its deadline." if again else "."
    )


def judge(reply: GateReply | GateUnreachable, asked: Question, keys: Keys | None, now_s: int) -> Judged:
    """What came of `asked`; `keys` None: mode `status`."""
    if isinstance(reply, GateUnreachable):
        return Judged(Decision.NOTHING, 0, {Part.STATUS: reply.reason}, unreachable=reply.code)
    if keys is None:
        if reply.status in (200, 403):
            return Judged(Decision.YES if reply.status == 200 else Decision.NO, reply.status)
        return Judged(Decision.NOTHING, reply.status, {Part.STATUS: f"HTTP {reply.status}"})
    if reply.status == 202:
        return Judged(Decision.PENDING, 202, retry_after_s=reply.retry_after_s)
    if reply.status != 200:
        return Judged(Decision.NOTHING, reply.status, {Part.STATUS: f"HTTP {reply.status}"})
    faults = _signature_faults(reply, asked, keys, now_s)
    try:
        answer = parse_as(reply.body, Answer)
    except (JsonInvalid, msgspec.DecodeError) as error:
        shown = str(error)[:100] if reply.body else "an empty body"
        return Judged(Decision.NOTHING, 200, faults | {Part.FORM: f"not an answer: {shown}"})
    faults |= _echo_faults(answer, asked)
    lives_s = 0
    if answer.allowed:
        try:
            lives_s = parse_time(answer.expiresAt) - now_s
            if lives_s <= 0:
                faults[Part.EXPIRY] = f"a yes that expired {-lives_s} s ago"
        except ValueError:
            faults[Part.EXPIRY] = f"expiresAt is {answer.expiresAt[:40]!r}, not a time such as 2026-01-01T00:00:00Z"
    decision = Decision.NOTHING if faults else Decision.YES if answer.allowed else Decision.NO
    return Judged(decision, 200, faults, answer, lives_s)


def _signature_faults(reply: GateReply, asked: Question, keys: Keys, now_s: int) -> dict[Part, str]:
    faults: dict[Part, str] = {}
    given = (reply.webhook_id, reply.webhook_timestamp, reply.webhook_signature, reply.body)
    if reply.body == asked.body:
        faults[Part.REFLECTED] = "the answer is our own question"
    elif signed_by(keys.asks, *given):
        faults[Part.REFLECTED] = "the answer is signed with the secret of the questions, request_hmac"
    elif not reply.webhook_signature:
        faults[Part.SIGNATURE] = "the answer has no header webhook-signature"
    elif not _ID.fullmatch(reply.webhook_id):
        faults[Part.SIGNATURE] = "the answer's header webhook-id is missing or malformed"
    elif len(reply.webhook_signature.split(" ")) > MAX_SIGNATURES:
        faults[Part.SIGNATURE] = f"the answer has more than {MAX_SIGNATURES} signatures"
    elif not signed_by(keys.answers, *given):
        faults[Part.SIGNATURE] = "the answer's signature does not verify"
    if not _TIMESTAMP.fullmatch(reply.webhook_timestamp):
        faults[Part.TIMESTAMP] = "the answer's header webhook-timestamp is missing or not a Unix time in seconds"
    elif abs(int(reply.webhook_timestamp) - now_s) > TOLERANCE_S:
        faults[Part.TIMESTAMP] = f"the answer was signed {now_s - int(reply.webhook_timestamp)} s ago"
    return faults


def _echo_faults(answer: Answer, asked: Question) -> dict[Part, str]:
    info = asked.message["signerInfo"]
    expected = {
        "type": (answer.type, ANSWER_TYPE),
        "uid": (answer.uid, asked.uid),
        "request_digest": (answer.request_digest, info["request_digest"]),
        "signer_id": (answer.signer_id, info["signer_id"]),
        "kind": (answer.kind, info["kind"]),
    }
    wrong = [name for name, (found, right) in expected.items() if found != right]
    faults = {Part.ECHO: f"the answer's {', '.join(wrong)} is not the question's"} if wrong else {}
    if answer.dryRun is not asked.message["dryRun"]:
        faults[Part.DRY_RUN] = f"dryRun is {str(answer.dryRun).lower()} in the answer to one that says otherwise"
    return faults
