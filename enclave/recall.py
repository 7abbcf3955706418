"""SPEC 4.10: telling a coordinator what was answered under a request's name, possibly through another coordinator.

Only what has left this enclave before is told, so nothing is decided here; but it is told to nobody who does not show
the client's request.
"""

from __future__ import annotations

from collections.abc import Callable

from enclave.effects import Effects
from enclave.errors import Refused
from enclave.reload import SigningRules
from enclave.request_book import RequestBook
from enclave.requests import parse_hash_batch, parse_key_creation, parse_signing_body, verify_request
from enclave.wire import Answer, ClientRequest, Recalled, RecallOrder, RequestRefused
from policies.requests import KEYS_PATH, body_digest, request_name


class Recall:
    """Answers `RecallOrder`."""

    def __init__(
        self, rules: SigningRules, book: RequestBook, effects: Effects, wall_clock: Callable[[], float]
    ) -> None:
        self._rules, self._book, self._effects, self._clock = rules, book, effects, wall_clock

    def tell(self, coordinator: str, order: RecallOrder, stored: Answer | None) -> None:
        """Report `Recalled`, or `RequestRefused` for a request that does not verify or has another body."""
        try:
            answer = self._recall(order.request, stored)
        except Refused as refusal:
            self._effects.report(coordinator, RequestRefused(order.ceremony, refusal.rule, refusal.reason[:500]))
        else:
            self._effects.report(coordinator, Recalled(order.ceremony, answer))

    def _recall(self, request: ClientRequest, stored: Answer | None) -> Answer | None:
        digest = request.digest(self._rules.roster.network)
        state = self._book.get(digest)
        if state is not None and state.name:
            name = state.name
        elif stored is not None and stored.kept.request == digest:
            # It verified when it was answered, and may have expired since.
            name = stored.kept.name
        else:
            name = self._verified_name(request)
        answer = self._book.answers.newest(name)
        if answer is None and stored is not None and stored.kept.name == name:
            answer = stored
        if answer is not None and answer.kept.body != body_digest(request.path, request.body):
            raise Refused("request/external-id", "this externalId stands for another request of this client")
        self._book.answers.check_idle(name)
        self._book.answers.withdraw(name)
        return answer

    def _verified_name(self, request: ClientRequest) -> bytes:
        rules = self._rules
        verified = verify_request(
            request,
            policy=rules.policy,
            network=rules.roster.network,
            now_s=int(self._clock()),
            boot_s=rules.boot_s,
        )
        if request.path == KEYS_PATH:
            external_id = parse_key_creation(verified).external_id
        elif request.path.endswith("/signature-batches"):
            external_id = parse_hash_batch(verified).external_id
        else:
            external_id = parse_signing_body(verified).external_id
        return request_name(rules.roster.network, verified.client_id, external_id)
