"""Who may have a key created: the request and policy checks in front of key generation (SPEC 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from enclave.answers import AlreadyAnswered
from enclave.asking import Gate
from enclave.attempts import Attempt, RequestState
from enclave.audit import AuditLog
from enclave.effects import Effects
from enclave.errors import KeymootError, Refused
from enclave.freezes import Freezes
from enclave.gate import GateSaidNo
from enclave.meters import rule_label
from enclave.orders import FIRST_KEY_EPOCH, CeremonyOrders
from enclave.reload import SigningRules
from enclave.request_book import RequestBook
from enclave.request_log import RequestLog
from enclave.requests import parse_key_creation, verify_request
from enclave.wire import (
    Answer,
    ClientRequest,
    Consented,
    ConsentOrder,
    GatePending,
    Kept,
    KeygenOrder,
    KeysAcknowledged,
    KeysActivated,
    Recalled,
    RequestRefused,
)
from policies.clients import Client
from policies.counters import Counters
from policies.decide import Refuse, decide
from policies.facts import Request
from policies.gate_messages import KeyCreationInfo, RequestInfo
from policies.model import Action
from policies.requests import KEYS_PATH, body_digest, request_name
from policies.requests import KeyCreation as KeyCreationBody

REMEMBERED_S = 600.0


class Checked(NamedTuple):
    """A request for a key that is permitted: its key's label, its name (SPEC 4.10), whose it is."""

    label: str
    name: bytes
    client: Client
    body: KeyCreationBody


class KeyCreation:
    """Starts key generation for requests that verify here and that this signer's policy allows."""

    def __init__(
        self,
        rules: SigningRules,
        book: RequestBook,
        orders: CeremonyOrders,
        effects: Effects,
        wall_clock: Callable[[], float],
        log: RequestLog,
        freezes: Freezes,
        gate: Gate,
        index: int,
        audit: AuditLog,
    ) -> None:
        """`index`: this signer's."""
        self._audit = audit
        self._freezes, self._gate, self._index = freezes, gate, index
        self._rules, self._book, self._orders, self._effects = rules, book, orders, effects
        self._clock, self._log = wall_clock, log
        self.counters: dict[str, int] = {}

    def start(self, coordinator: str, order: KeygenOrder, stored: Answer | None = None) -> None:
        """Begin the ceremony, or report `RequestRefused`; `Recalled` where the request was answered before (`stored`:
        what the store has of it). A request whose key was stored is never carried out again.

        Raises `Refused` or `Unavailable` where the ceremony can't start.
        """
        try:
            checked = [self._check(request) for request in order.requests]
            states = self._open(order, checked)
            self._claim(order, states, checked, stored)
            self._check_consent(states)
        except AlreadyAnswered as earlier:
            self._effects.report(coordinator, Recalled(order.ceremony, earlier.answer))
            return
        except Refused as refusal:
            self._refuse(coordinator, order.ceremony, order.requests, refusal)
            return

        kept: Kept | None = None
        if len(states) == 1:
            # SPEC 4.10: which key is whose is not told of several.
            kept = Kept(states[0].name, states[0].body, states[0].digest, self._rules.roster.indices)

        def answered(report: KeysAcknowledged | KeysActivated) -> None:
            for state in states:
                state.closed = state.done = True
            if kept is not None:
                self._book.answers.keep(Answer(kept, report))

        def ended() -> None:
            for state in states:
                state.asking = state.answering = False

        def permitted() -> None:
            for one in checked:
                self._check_again(one)

        for state in states:
            state.asking = state.answering = True
        labels = [one.label for one in checked]
        try:
            self._orders.start_keygen(coordinator, order, labels, kept, permitted, answered, ended)
        except KeymootError:
            ended()
            raise
        for state, request in zip(states, order.requests, strict=True):
            self._log.told("key begun", state.digest, request.request_id, ceremony=order.ceremony.hex())

    # --- the gate ---

    async def consent(self, coordinator: str, order: ConsentOrder, stored: Answer | None) -> None:
        """Report `Consented`, `RequestRefused`, `GatePending`, or `Recalled`; nothing while the gate is asked for an
        earlier attempt, which then answers the newest one."""
        # SPEC 6.11
        begun: RequestState | None = None
        ceremony = order.ceremony
        try:
            checked = self._check(order.request)
            state = self._open_one(order.request, checked)
            self._begin_consent(coordinator, order, state, checked, stored)
            begun = state
            if state.asking:
                self._tell_pending(state)
                return
            if self._needs_consent(state):
                await self._ask_gate(state, checked)
                self._check_again(checked)
        except AlreadyAnswered as earlier:
            self._effects.report(coordinator, Recalled(ceremony, earlier.answer))
            return
        except Refused as refusal:
            if begun is not None and begun.attempt is not None:
                coordinator, ceremony = begun.attempt.coordinator, begun.attempt.ceremony
            self._refuse(coordinator, ceremony, (order.request,), refusal)
            return
        if state.attempt is not None:
            self._effects.report(state.attempt.coordinator, Consented(state.attempt.ceremony))

    def _begin_consent(
        self, coordinator: str, order: ConsentOrder, state: RequestState, checked: Checked, stored: Answer | None
    ) -> None:
        request = order.request
        if state.answering:
            raise Refused("request/busy", "this request is being carried out")
        self._book.claim(state, checked.name, body_digest(request.path, request.body), stored)
        self._book.answers.check(checked.name, order.after)
        everybody = self._rules.roster.indices
        self._book.begin(state, Attempt(coordinator, order.ceremony, everybody, (), request.request_id, order.after))

    def _needs_consent(self, state: RequestState) -> bool:
        asks = self._rules.gate_key_creation and self._rules.gate_mode != "none"
        return asks and state.consent_until_s <= self._clock()

    def _check_consent(self, states: Sequence[RequestState]) -> None:
        if any(self._needs_consent(state) for state in states):
            raise Refused("gate/not-asked", "this signer's gate must be asked first, and its yes must not have expired")

    async def _ask_gate(self, state: RequestState, checked: Checked) -> None:
        roster, body = self._rules.roster, checked.body
        info = KeyCreationInfo(
            label=checked.label,
            signer_id=roster.signer(self._index).name,
            scheme=body.scheme,
            curve=body.curve,
            key_epoch=FIRST_KEY_EPOCH,
            participants=roster.indices,
            tolerate=roster.tolerate,
            roster_digest=roster.digest().hex(),
        )
        told = RequestInfo(checked.client.id, body.external_id, roster.network, msgspec.to_builtins(body), None)

        def pending(until_s: int) -> None:
            # A person is not asked on for what would be refused after all.
            self._check_again(checked)
            state.pending_until_s = until_s
            self._tell_pending(state)

        state.count_question()
        state.asking = True
        request_id = state.attempt.request_id if state.attempt is not None else ""
        deadline_s = int(self._clock()) + self._rules.gate_deadline_s
        try:
            state.consent_until_s = (await self._gate.ask(info, told, deadline_s, pending, request_id)).expires_at_s
        except Refused as refusal:
            if isinstance(refusal, GateSaidNo):
                state.closed, state.said_no = True, refusal.reason
            self._audit_decision(state, "refused", checked, rule=refusal.rule, reason=refusal.reason[:300])
            raise
        finally:
            state.asking, state.pending_until_s = False, 0
        self._audit_decision(state, "consented", checked, gate=self._rules.gate_mode)

    def _audit_decision(self, state: RequestState, event: str, checked: Checked, **facts: str) -> None:
        """What came of a question, of which there are three a request at most."""
        asked = {"client": checked.client.id, "label": checked.label, "request": state.digest.hex()}
        self._effects.audit(self._audit.record(event, **asked, **facts))

    def _tell_pending(self, state: RequestState) -> None:
        if state.pending_until_s and state.attempt is not None:
            self._effects.report(state.attempt.coordinator, GatePending(state.attempt.ceremony, state.pending_until_s))

    # --- checks ---

    def _refuse(self, coordinator: str, ceremony: bytes, requests: Sequence[ClientRequest], refusal: Refused) -> None:
        name = f"requests_refused|{rule_label(refusal.rule)}"
        self.counters[name] = self.counters.get(name, 0) + 1
        for request in requests:
            digest = request.digest(self._rules.roster.network)
            facts = {"rule": refusal.rule, "reason": refusal.reason[:300]}
            self._log.refused(coordinator, "key refused", digest, request.request_id, **facts)
        self._effects.report(coordinator, RequestRefused(ceremony, refusal.rule, refusal.reason[:500]))

    def _claim(
        self, order: KeygenOrder, states: list[RequestState], checked: list[Checked], stored: Answer | None
    ) -> None:
        """SPEC 4.10. Raises `AlreadyAnswered`, `Refused`."""
        for state, request, one in zip(states, order.requests, checked, strict=True):
            self._book.claim(state, one.name, body_digest(request.path, request.body), stored)
            self._book.answers.check(one.name, order.after)

    def _open(self, order: KeygenOrder, checked: Sequence[Checked]) -> list[RequestState]:
        """One request makes one key: none twice in an order, none that is being carried out or was."""
        digests = [request.digest(self._rules.roster.network) for request in order.requests]
        if len(set(digests)) != len(digests):
            raise Refused("request/replayed", "one request twice in an order")
        states = [self._open_one(*each) for each in zip(order.requests, checked, strict=True)]
        if any(state.asking for state in states):
            raise Refused("request/busy", "this request is being carried out")
        return states

    def _open_one(self, request: ClientRequest, checked: Checked) -> RequestState:
        fresh_until_s = self._clock() + REMEMBERED_S
        digest = request.digest(self._rules.roster.network)
        return self._book.open(digest, fresh_until_s + self._rules.gate_deadline_s, fresh_until_s, checked.client.id)

    def _check(self, request: ClientRequest) -> Checked:
        """Raises `Refused` for what is not permitted."""
        rules = self._rules
        # SPEC 6.9: it verified when it came; a gate may have taken hours.
        known = self._book.get(request.digest(rules.roster.network))
        now_s = known.verified_s if known is not None else int(self._clock())
        verified = verify_request(
            request, policy=rules.policy, network=rules.roster.network, now_s=now_s, boot_s=rules.boot_s
        )
        if request.path != KEYS_PATH:
            raise Refused("request/path", f"keys are created at {KEYS_PATH}")
        body = parse_key_creation(verified)
        if (body.signers, body.tolerate) != (rules.roster.n, rules.roster.tolerate):
            raise Refused(
                "request/scheme",
                f"this network has {rules.roster.n} signers and tolerates {rules.roster.tolerate}",
            )
        self._freezes.check(body.label)
        self._ask_policy(verified.client_id, body.label)
        name = request_name(rules.roster.network, verified.client_id, body.external_id)
        return Checked(body.label, name, verified.client, body)

    def _check_again(self, checked: Checked) -> None:
        """Before its share is stored: raises `Refused` where its label was frozen since, its client's key revoked, or
        where the policy in force now says no."""
        # SPEC 4.11, 4.12
        self._freezes.check(checked.label)
        if self._rules.policy.client(checked.client.id) != checked.client:
            raise Refused("request/client", f"the key of client {checked.client.id} was revoked meanwhile")
        self._ask_policy(checked.client.id, checked.label)

    def _ask_policy(self, client_id: str, label: str) -> None:
        asked = Request(client_id=client_id, action=Action.CREATE_KEY, label=label)
        decision = decide(self._rules.policy, asked, Counters(), int(self._clock()))
        if isinstance(decision, Refuse):
            raise Refused(decision.rule, decision.reason)
