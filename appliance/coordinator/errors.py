"""How a ceremony ends without a result."""

from __future__ import annotations

from enclave import wire
from policies.errors import KeymootError, Refused

# Refusals of these rules say nothing about what was asked: the request has failed, it was not rejected.
STATE_RULES = frozenset({"unavailable", "busy", "committee", "key/pending", "key", "record", "frozen"})
# Neither do these, but trying the same request once more is pointless: its client must sign it anew.
SPENT_RULES = frozenset({"request/boot", "request/attempts", "request/expired"})


class CeremonyEnded(KeymootError):
    """No result, and nobody decided so: a failure. `code` is stable; `signer` is an index, 0 for none; `round` is the
    round of the protocol in which the signer says that it ended, 0 for none."""

    def __init__(self, code: str, reason: str, signer: int = 0, round_number: int = 0) -> None:
        super().__init__(f"{code}: {reason}")
        self.round = round_number
        self.code, self.reason, self.signer = code, reason, signer


class GatesTakeTime(Exception):
    """An attempt ends since gates need time: there is another one once they have decided."""


class Rejected(Refused):
    """Signer `signer` decided that the request is not to be carried out."""

    def __init__(self, rule: str, reason: str, signer: int) -> None:
        super().__init__(rule, reason)
        self.signer = signer


def failure(signer: int, report: wire.ReportBody) -> CeremonyEnded | Rejected:
    """The error that a report of `signer` stands for, where a result was awaited."""
    match report:
        case wire.RequestRefused(_, rule, reason) if rule in STATE_RULES | SPENT_RULES:
            return CeremonyEnded(rule, reason, signer)
        case wire.RequestRefused(_, rule, reason):
            return Rejected(rule, reason, signer)
        case wire.CeremonyFailed(_, kind, step, reason):
            where = f"step {step}: " if step else ""
            return CeremonyEnded(f"ceremony/{kind}", where + reason, signer, report.round)
        case wire.OrderRefused(_, reason):
            return CeremonyEnded("order-refused", reason, signer)
        case wire.OnlineRefused(_, reason):
            return CeremonyEnded("online-refused", reason, signer)
        case _:
            return CeremonyEnded("unexpected-report", f"{type(report).__name__} was not due", signer)
