"""SPEC 4.1 and, for batches, SPEC 4.7: whether a request may be signed. First the client's signature, then the policy,
then the gate; nothing is reserved or spent by it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from enclave.answers import AlreadyAnswered
from enclave.asked import derive_items, request_info, signer_info, understand
from enclave.asking import Gate
from enclave.attempts import Approval, RequestState
from enclave.counting import Counting, Permission
from enclave.effects import Effects
from enclave.errors import Refused
from enclave.gate import GateAllowed
from enclave.online import Holdings
from enclave.reload import SigningRules
from enclave.request_book import RequestBook
from enclave.requests import VerifiedRequest, verify_request
from enclave.shares import KeyFacts
from enclave.terms import AUTHORIZATION_S
from enclave.wire import Answer, BatchSignOrder, ClientRequest, GatePending, Record, SignOrder
from policies.gate_messages import BatchSignerInfo, RequestInfo, SignerInfo
from policies.requests import body_digest, request_name

AnyOrder = SignOrder | BatchSignOrder


class Deciding:
    """Puts requests to the policy and to the gate."""

    def __init__(
        self,
        rules: SigningRules,
        holdings: Holdings,
        gate: Gate,
        effects: Effects,
        book: RequestBook,
        wall_clock: Callable[[], float],
        counting: Counting,
    ) -> None:
        self._rules, self._holdings, self._gate, self._book = rules, holdings, gate, book
        self._session, self._vault = holdings.session, holdings.vault
        self._effects, self._clock, self._counting = effects, wall_clock, counting
        self._roster_digest = rules.roster.digest()

    def verify(self, request: ClientRequest, now_s: int | None = None) -> VerifiedRequest:
        """By the policy in force, as of now or of `now_s`, when it came. Raises `Refused`."""
        present_s = int(self._clock())
        return verify_request(
            request,
            policy=self._rules.policy,
            network=self._rules.roster.network,
            now_s=present_s if now_s is None else now_s,
            boot_s=self._rules.boot_s,
            present_s=present_s,
        )

    async def decide(
        self,
        state: RequestState,
        order: AnyOrder,
        request: VerifiedRequest,
        record: Record | None,
        stored: Answer | None,
    ) -> Approval:
        """The yes of policy and gate. Raises `Refused`, `AlreadyAnswered`, `CallerError`, `Unavailable`."""
        if state.name:
            self._book.answers.check(state.name, order.after)
        key = self._check_key(order.key_id, await self._vault.key_facts(record, order.key_id))
        acknowledgement, batch = key.acknowledgement, isinstance(order, BatchSignOrder)
        self._counting.freezes.check(acknowledgement.label)
        approvers = request.approver_ids
        approved_by = frozenset(approvers)
        state.lacking.check(approved_by, self._clock())
        state.count_question()
        asked, shown = understand(request, batch)
        try:
            self._claim(state, order, request.client_id, asked.external_id, stored)
        except AlreadyAnswered:
            # No question was put. From now on the name is known, and the answer is found above.
            state.asked -= 1
            raise
        if isinstance(order, BatchSignOrder) and len(order.presignatures) != len(asked.items):
            raise Refused("presignature", "a batch needs one presignature for each hash")
        label, request_id = acknowledgement.label, order.request.request_id
        try:
            permission = await self._counting.permit(request.client, asked, label, state.digest, request_id)
        except Refused as refusal:
            # SPEC 4.13: it may come back with more approvals.
            if refusal.rule == "policy/approvals":
                state.lacking.keep(approved_by, refusal.reason, self._clock())
                state.asked -= 1
            raise
        items = await derive_items(asked, acknowledgement, self._holdings.pause)
        until_s = max(request.expires_at_s, int(self._clock()) + AUTHORIZATION_S)
        if self._rules.gate_mode != "none":
            name = self._rules.roster.signer(self._session.index).name
            info = signer_info(asked, items, acknowledgement, order.committee, name, permission.to_gate)
            told = request_info(asked, shown, self._rules.roster.network)
            until_s = (await self._ask_gate(state, order, info, told, permission)).expires_at_s
            permission.again()
        return Approval(request.client_id, key, batch, items, order.committee, until_s, permission.again, approvers)

    def _claim(
        self, state: RequestState, order: AnyOrder, client_id: str, external_id: str, stored: Answer | None
    ) -> None:
        """SPEC 4.10: one body under one external id, and an answer that was given is not given again."""
        name = request_name(self._rules.roster.network, client_id, external_id)
        self._book.claim(state, name, body_digest(order.request.path, order.request.body), stored)
        self._book.answers.check(name, order.after)

    def _check_key(self, key_id: str, key: KeyFacts) -> KeyFacts:
        if not key.active:
            raise Refused("key/pending", f"{key_id} is not activated here: its certificate is missing")
        if key.acknowledgement.roster_digest != self._roster_digest:
            raise Refused("key/roster", f"{key_id} belongs to another roster")
        return key

    def _ask_gate(
        self,
        state: RequestState,
        order: AnyOrder,
        info: SignerInfo | BatchSignerInfo,
        told: RequestInfo,
        permission: Permission,
    ) -> Coroutine[Any, Any, GateAllowed]:
        def pending(until_s: int) -> None:
            # A person is not asked on for what would be refused after all.
            permission.again()
            state.pending_until_s = until_s
            self.tell_pending(state)

        deadline_s = int(self._clock()) + self._rules.gate_deadline_s
        return self._gate.ask(info, told, deadline_s, pending, order.request.request_id)

    def tell_pending(self, state: RequestState) -> None:
        """The newest attempt learns that the gate needs time, perhaps after its coordinator was away."""
        if state.pending_until_s and state.attempt is not None:
            self._effects.report(state.attempt.coordinator, GatePending(state.attempt.ceremony, state.pending_until_s))
