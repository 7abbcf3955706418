"""Who may have a key created: the request and policy checks in front of key generation (SPEC 2)."""

from __future__ import annotations

from collections.abc import Callable

from enclave.answers import AlreadyAnswered
from enclave.attempts import RequestBook, RequestState
from enclave.authorise import SigningRules
from enclave.effects import Effects
from enclave.errors import KeymootError, Refused
from enclave.meters import rule_label
from enclave.orders import CeremonyOrders
from enclave.request_log import RequestLog
from enclave.requests import parse_key_creation, verify_request
from enclave.wire import (
    Answer,
    ClientRequest,
    Kept,
    KeygenOrder,
    KeysAcknowledged,
    KeysActivated,
    Recalled,
    RequestRefused,
)
from policies.counters import Counters
from policies.decide import Refuse, decide
from policies.facts import Request
from policies.model import Action
from policies.requests import KEYS_PATH, body_digest, request_name

REMEMBERED_S = 600.0


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
    ) -> None:
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
            states = self._open(order)
            self._claim(order, states, checked, stored)
        except AlreadyAnswered as earlier:
            self._effects.report(coordinator, Recalled(order.ceremony, earlier.answer))
            return
        except Refused as refusal:
            name = f"requests_refused|{rule_label(refusal.rule)}"
            self.counters[name] = self.counters.get(name, 0) + 1
            for request in order.requests:
                digest = request.digest(self._rules.roster.network)
                facts = {"rule": refusal.rule, "reason": refusal.reason[:300]}
                self._log.refused(coordinator, "key refused", digest, request.request_id, **facts)
            self._effects.report(coordinator, RequestRefused(order.ceremony, refusal.rule, refusal.reason[:500]))
            return

        kept: Kept | None = None
        if len(states) == 1:
            # SPEC 4.10: which key is whose is not told of several.
            kept = Kept(states[0].name, states[0].body, states[0].digest, self._rules.roster.indices)

        def answered(report: KeysAcknowledged | KeysActivated) -> None:
            for state in states:
                state.closed = True
            if kept is not None:
                self._book.answers.keep(Answer(kept, report))

        def ended() -> None:
            for state in states:
                state.asking = state.answering = False

        for state in states:
            state.asking = state.answering = True
        try:
            self._orders.start_keygen(coordinator, order, [label for label, _ in checked], kept, answered, ended)
        except KeymootError:
            ended()
            raise
        for state, request in zip(states, order.requests, strict=True):
            self._log.told("key begun", state.digest, request.request_id, ceremony=order.ceremony.hex())

    def _claim(
        self, order: KeygenOrder, states: list[RequestState], checked: list[tuple[str, bytes]], stored: Answer | None
    ) -> None:
        """SPEC 4.10. Raises `AlreadyAnswered`, `Refused`."""
        for state, request, (_, name) in zip(states, order.requests, checked, strict=True):
            self._book.claim(state, name, body_digest(request.path, request.body), stored)
            self._book.answers.check(name, order.after)

    def _open(self, order: KeygenOrder) -> list[RequestState]:
        """One request makes one key: none twice in an order, none that is being carried out or was."""
        digests = [request.digest(self._rules.roster.network) for request in order.requests]
        if len(set(digests)) != len(digests):
            raise Refused("request/replayed", "one request twice in an order")
        states = [self._book.open(digest, self._clock() + REMEMBERED_S) for digest in digests]
        if any(state.asking for state in states):
            raise Refused("request/busy", "this request is being carried out")
        return states

    def _check(self, request: ClientRequest) -> tuple[str, bytes]:
        """The label the key will have, and the request's name (SPEC 4.10)."""
        rules, now_s = self._rules, int(self._clock())
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
        asked = Request(client_id=verified.client_id, action=Action.CREATE_KEY, label=body.label)
        decision = decide(rules.policy, asked, Counters(), now_s)
        if isinstance(decision, Refuse):
            raise Refused(decision.rule, decision.reason)
        return body.label, request_name(rules.roster.network, verified.client_id, body.external_id)
