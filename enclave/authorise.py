"""SPEC 4.1 and, for batches, SPEC 4.7 in this enclave: who may have what signed.

The order of effects:

1. the client's request verifies, the policy allows it, the gate says yes (`deciding.py`);
2. room within the policy's limits is held, an authorization is signed and remembered: at most one outstanding, three in
   a request's life.

What follows, with everybody's authorizations, is in `online.py`: only there is a presignature spent.
"""

from __future__ import annotations

from collections.abc import Callable

from enclave.answers import AlreadyAnswered
from enclave.asking import Gate
from enclave.attempts import Approval, Attempt, Outstanding, RequestState
from enclave.audit import AuditLog
from enclave.counting import Counting, Lapsed
from enclave.deciding import AnyOrder, Deciding
from enclave.effects import Effects
from enclave.errors import CallerError, Refused, Unavailable
from enclave.gate import GateSaidNo
from enclave.meters import rule_label
from enclave.online import Holdings, OnlineStep
from enclave.reload import SigningRules
from enclave.request_book import RequestBook
from enclave.request_log import RequestLog
from enclave.requests import VerifiedRequest
from enclave.terms import AUTHORIZATION_S, audit_facts, make_terms, new_authorization, sign_authorization
from enclave.wire import (
    Answer,
    AuditEntry,
    AuthorizationTerms,
    BatchSignOrder,
    BatchTerms,
    PresignatureName,
    Recalled,
    Record,
    RequestRefused,
    UnknownPresignature,
    UnknownPresignatures,
)
from policies.requests import signature_batches_path, signatures_path
from policies.signed_requests import CLOCK_SKEW_S, MAX_LIFETIME_S


class Authoriser:
    """SPEC 4.1 and 4.7 for all requests of this boot; `online` is for what follows."""

    def __init__(
        self,
        rules: SigningRules,
        holdings: Holdings,
        gate: Gate,
        audit: AuditLog,
        effects: Effects,
        book: RequestBook,
        wall_clock: Callable[[], float],
        random: Callable[[int], bytes],
        log: RequestLog,
        counting: Counting,
    ) -> None:
        self._rules, self._holdings, self.gate, self.book = rules, holdings, gate, book
        self._session, self._vault, self._pool = holdings.session, holdings.vault, holdings.pool
        self._audit, self._effects, self._clock, self._random = audit, effects, wall_clock, random
        self._deciding = Deciding(rules, holdings, gate, effects, book, wall_clock, counting)
        self.counters: dict[str, int] = {}
        self._log, self._counting = log, counting
        self.online = OnlineStep(holdings, book, audit, effects, wall_clock, self._count, log, counting)

    async def authorise(
        self, coordinator: str, order: AnyOrder, record: Record | None, stored: Answer | None = None
    ) -> None:
        """Answer a signing request, or one for a batch: `Authorized`, `RequestRefused`, `UnknownPresignature`, or their
        like for batches; `Recalled` where it was answered before (`stored`: what the store has of it); nothing while
        an earlier attempt of the same request is being decided, which then answers the newest one."""
        state: RequestState | None = None
        begun = False
        try:
            self._vault.require_hsm()
            # A request that is known was verified, and may have been approved long after its JWS expired.
            digest = order.request.digest(self._rules.roster.network)
            state, request = self.book.get(digest), None
            if state is None:
                request = self._deciding.verify(order.request)
                waits = request.lifetime_s > MAX_LIFETIME_S
                state = self.book.open(digest, *self._remembered_until_s(request), request.client_id, waits)
            self._begin_attempt(coordinator, state, order)
            begun = True
            if state.asking:
                self._deciding.tell_pending(state)
                return
            authorized = False
            while not authorized:
                try:
                    if not state.is_approved(order.committee, self._clock()):
                        # SPEC 6.9: it verified when it came; another gate may have taken hours.
                        request = request or self._deciding.verify(order.request, state.verified_s)
                        await self._approve(state, order, request, record, stored)
                    self._authorize(state)
                    authorized = True
                except Lapsed:
                    # Decided anew, which `count_question` bounds.
                    state.lapse()
        except AlreadyAnswered as earlier:
            self._recall(coordinator, order, state, earlier.answer)
        except Refused as refusal:
            self._refuse(coordinator, order, state, begun, refusal.rule, refusal.reason)
        except CallerError as error:
            self._refuse(coordinator, order, state, begun, "record", str(error))
        except Unavailable as error:
            self._refuse(coordinator, order, state, begun, "unavailable", str(error))

    def _remembered_until_s(self, request: VerifiedRequest) -> tuple[int, int]:
        """Where it isn't carried out, and where it is."""
        fresh_until_s = request.expires_at_s + AUTHORIZATION_S + CLOCK_SKEW_S
        return fresh_until_s + self._rules.gate_deadline_s, fresh_until_s

    def _begin_attempt(self, coordinator: str, state: RequestState, order: AnyOrder) -> None:
        if not self._rules.roster.is_committee(order.committee) or self._session.index not in order.committee:
            raise Refused("committee", "not a committee of 2t + 1 signers with this one among them")
        state.check_open()
        if isinstance(order, BatchSignOrder):
            # SPEC 4.7
            path, presignatures = signature_batches_path(order.key_id), order.presignatures
            if len(set(presignatures)) != len(presignatures):
                raise Refused("presignature", "a presignature is named twice in one batch")
        else:
            path, presignatures = signatures_path(order.key_id), (order.presignature,)
        if order.request.path != path:
            raise Refused("request/path", "the signed path is not that of this key's signatures")
        request_id = order.request.request_id
        attempt = Attempt(coordinator, order.ceremony, order.committee, presignatures, request_id, order.after)
        self.book.begin(state, attempt)

    async def _approve(
        self,
        state: RequestState,
        order: AnyOrder,
        request: VerifiedRequest,
        record: Record | None,
        stored: Answer | None,
    ) -> None:
        state.asking, asked = True, state.asked
        try:
            state.approval = await self._deciding.decide(state, order, request, record, stored)
        except GateSaidNo as no:
            state.closed, state.said_no = True, no.reason
            raise
        finally:
            state.asking, state.pending_until_s = False, 0
            if state.asked > asked:
                # What came of a question is always audited, whatever was refused while it was asked.
                state.refusals = 0

    def _authorize(self, state: RequestState) -> None:
        """Sign the terms of the newest attempt, which may have come while the gate was asked."""
        attempt, approval = state.attempt, state.approval
        if attempt is None or approval is None or attempt.committee != approval.committee:
            raise Refused("committee", "another committee was named while the gate was asked: try again")
        if len(attempt.presignatures) != len(approval.items):
            raise Refused("presignature", "a batch needs one presignature for each hash")
        # SPEC 4.10: since it was approved, another request of its name may have been answered.
        self.book.answers.check(state.name, attempt.after)
        # Before anything is held for it.
        state.check_attempts()
        charge = state.check_permitted(anew=True)
        terms = make_terms(approval, attempt, state.digest, self._holdings.prss.epoch)
        if unknown := [name for name in attempt.presignatures if not self._holds(name, terms)]:
            self._report_unknown(attempt, approval, unknown)
            return
        until_s = min(int(self._clock()) + AUTHORIZATION_S, approval.until_s)
        authorization = new_authorization(terms, self._session, self._random(32), until_s)
        self.book.answers.withdraw(state.name, but=state.digest)
        if charge:
            # SPEC 7.3
            self._counting.ledger.hold(state.digest, charge, until_s)
            state.release = lambda: self._counting.ledger.release(state.digest)
        state.count_attempt(Outstanding(authorization, approval.items, attempt.presignatures))
        entry = self._audit.record(
            "authorized",
            client=approval.client_id,
            request=state.digest.hex(),
            committee=list(attempt.committee),
            gate=self._rules.gate_mode,
            **({"approvers": ", ".join(approval.approvers)} if approval.approvers else {}),
            **audit_facts(terms),
        )
        self._count("requests_authorized")
        self._log.told("request authorized", state.digest, attempt.request_id, client=approval.client_id)
        self._effects.report(
            attempt.coordinator, sign_authorization(attempt.ceremony, authorization, self._session), (entry,)
        )

    def _holds(self, name: PresignatureName, terms: AuthorizationTerms | BatchTerms) -> bool:
        return self._pool.holds(name, terms.committee, terms.prss_epoch)

    def _report_unknown(self, attempt: Attempt, approval: Approval, unknown: list[PresignatureName]) -> None:
        if approval.batch:
            self._effects.report(attempt.coordinator, UnknownPresignatures(attempt.ceremony, tuple(unknown)))
        else:
            self._effects.report(attempt.coordinator, UnknownPresignature(attempt.ceremony, unknown[0]))

    def _recall(self, coordinator: str, order: AnyOrder, state: RequestState | None, answer: Answer) -> None:
        """Answer the newest attempt by what was answered before."""
        ceremony = order.ceremony
        if state is not None and state.attempt is not None:
            coordinator, ceremony = state.attempt.coordinator, state.attempt.ceremony
            self.book.settle(state)
        self._count("requests_recalled")
        self._effects.report(coordinator, Recalled(ceremony, answer))

    def _refuse(
        self, coordinator: str, order: AnyOrder, state: RequestState | None, begun: bool, rule: str, reason: str
    ) -> None:
        """Answer the newest attempt, or the order itself where no attempt has `begun` with it. Only a request that
        verified goes into the audit chain, and not each time: others cost nothing to send, and would fill the disk."""
        self._count(f"requests_refused|{rule_label(rule)}")
        # What an anomaly shuts out is none of its signs: a rule that refuses on a burst would stay shut.
        refusing = rule.startswith(("policy/", "gate")) and rule not in ("policy/approvals", "policy/anomaly")
        if refusing and state is not None and not state.noticed:
            # Once a request: to order it again costs a coordinator nothing, and shuts rules that refuse on a burst.
            state.noticed = True
            self._counting.watch.on_refusal()
        digest = state.digest if state is not None else order.request.digest(self._rules.roster.network)
        self._log.refused(
            coordinator, "request refused", digest, order.request.request_id, rule=rule, reason=reason[:300]
        )
        entries: tuple[AuditEntry, ...] = ()
        ceremony = order.ceremony
        if state is not None:
            entries = self._audit_refusal(state, rule, reason)
            if begun and state.attempt is not None:
                coordinator, ceremony = state.attempt.coordinator, state.attempt.ceremony
            self.book.settle(state)
        self._effects.report(coordinator, RequestRefused(ceremony, rule, reason[:500]), entries)

    def _audit_refusal(self, state: RequestState, rule: str, reason: str) -> tuple[AuditEntry, ...]:
        left_out = state.count_refusal()
        if left_out is None:
            self._count("refusals_not_audited")
            return ()
        told = {"left_out": left_out} if left_out else {}
        return (self._audit.record("refused", request=state.digest.hex(), rule=rule, reason=reason[:300], **told),)

    def _count(self, name: str, amount: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + amount
