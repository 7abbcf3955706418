"""Who may have a key created: the request and policy checks in front of key generation (SPEC 2)."""

from __future__ import annotations

from collections.abc import Callable

from enclave.attempts import RequestBook, RequestState
from enclave.authorise import SigningRules
from enclave.effects import Effects
from enclave.errors import Refused
from enclave.meters import rule_label
from enclave.orders import CeremonyOrders
from enclave.request_log import RequestLog
from enclave.requests import parse_key_creation, verify_request
from enclave.wire import ClientRequest, KeygenOrder, RequestRefused
from policies.decide import Refuse, decide
from policies.model import Action, Counters, Request
from policies.requests import KEYS_PATH

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

    def start(self, coordinator: str, order: KeygenOrder) -> None:
        """Begin the ceremony, or report `RequestRefused`. A request whose key was stored is never carried out again.

        Raises `Refused` or `Unavailable` where the ceremony can't start.
        """
        try:
            labels = [self._check(request) for request in order.requests]
            states = self._open(order)
        except Refused as refusal:
            name = f"requests_refused|{rule_label(refusal.rule)}"
            self.counters[name] = self.counters.get(name, 0) + 1
            for request in order.requests:
                digest = request.digest(self._rules.roster.network)
                facts = {"rule": refusal.rule, "reason": refusal.reason[:300]}
                self._log.refused("key refused", digest, request.request_id, **facts)
            self._effects.report(coordinator, RequestRefused(order.ceremony, refusal.rule, refusal.reason[:500]))
            return

        def kept() -> None:
            for state in states:
                state.closed = True

        def ended() -> None:
            for state in states:
                state.asking = False

        self._orders.start_keygen(coordinator, order, labels, kept, ended)
        for state, request in zip(states, order.requests, strict=True):
            self._log.told("key begun", state.digest, request.request_id, ceremony=order.ceremony.hex())
        for state in states:
            state.asking = not state.closed

    def _open(self, order: KeygenOrder) -> list[RequestState]:
        """One request makes one key: none twice in an order, none that is being carried out or was."""
        digests = [request.digest(self._rules.roster.network) for request in order.requests]
        if len(set(digests)) != len(digests):
            raise Refused("request/replayed", "one request twice in an order")
        states = [self._book.open(digest, self._clock() + REMEMBERED_S) for digest in digests]
        if any(state.asking for state in states):
            raise Refused("request/busy", "this request is being carried out")
        return states

    def _check(self, request: ClientRequest) -> str:
        """The label the key will have."""
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
        return body.label
