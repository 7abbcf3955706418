"""A signer process that was taken over: it holds no secret, hears every question and answer, and says what it likes."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from typing import Any

import msgspec
import nacl.signing

from enclave import webhooks, wire
from enclave.gate_keys import GateKeys
from enclave.webhooks import parse_private_key
from tests.fakes.clients import TestGate

Told = wire.GateReply | wire.GateUnreachable | None


class KeyedGate(TestGate):
    """An honest handler that answers some signers with Ed25519, others with HMAC."""

    __test__ = False

    def __init__(self, clock: Callable[[], float], with_ed25519: set[int]) -> None:
        super().__init__(clock)
        request, answer = nacl.signing.SigningKey.generate(), nacl.signing.SigningKey.generate()
        pair = "whsk_" + base64.b64encode(request.encode()).decode()
        point = "whpk_" + base64.b64encode(answer.verify_key.encode()).decode()
        both = json.loads(self.secrets) | {"request_ed25519": pair, "answer_ed25519": point}
        self.secrets = json.dumps(both).encode()
        self.own = parse_private_key("whsk_" + base64.b64encode(answer.encode()).decode())
        self.with_ed25519 = with_ed25519

    def honest(self, member: int, call: wire.CallGate, allowed: bool, **change: Any) -> wire.GateReply:
        """What the handler says to this question; `change` of the answer's fields."""
        answer = self.answer(json.loads(call.body), allowed, "" if allowed else "no") | change
        reply = self.reply(call.uid, answer)
        if member not in self.with_ed25519:
            return reply
        signature = webhooks.sign([self.own], call.uid, int(reply.webhook_timestamp), reply.body)
        return msgspec.structs.replace(reply, webhook_signature=signature)


class LyingSigner:
    """`lie(member, call)` is what the enclave is told. All answers that the handler ever gave are in `heard`."""

    def __init__(self, gate: KeyedGate) -> None:
        self.gate = gate
        self.heard: dict[int, list[wire.GateReply]] = {}
        self.asked: dict[int, list[wire.CallGate]] = {}
        self.lie: Callable[[int, wire.CallGate], Told] = lambda member, call: self.handler(member, call, True)

    def __call__(self, member: int, call: wire.CallGate) -> Told:
        self.asked.setdefault(member, []).append(call)
        return self.lie(member, call)

    def handler(self, member: int, call: wire.CallGate, allowed: bool) -> wire.GateReply:
        """Carry the question to the handler, as an honest signer does."""
        reply = self.gate.honest(member, call, allowed)
        self.heard.setdefault(member, []).append(reply)
        return reply

    # --- lies: the handler says no, or nothing, or something else ---

    def unsigned_yes(self, member: int, call: wire.CallGate) -> Told:
        return msgspec.structs.replace(self.gate.honest(member, call, True), webhook_signature="", webhook_id="")

    def forged_yes(self, member: int, call: wire.CallGate) -> Told:
        reply, at_s = self.gate.honest(member, call, True), int(self.gate.clock())
        made_up = [webhooks.parse_key("whsec_" + base64.b64encode(os.urandom(32)).decode())]
        signature = webhooks.sign(made_up, call.uid, at_s, reply.body)
        return msgspec.structs.replace(reply, webhook_signature=signature)

    def no_made_yes(self, member: int, call: wire.CallGate) -> Told:
        reply = self.handler(member, call, False)
        return msgspec.structs.replace(reply, body=reply.body.replace(b"false", b"true"))

    def time_out_made_yes(self, member: int, call: wire.CallGate) -> Told:
        return wire.GateReply(call.uid, 200, "", "", "", 0, b"")

    def replayed_yes(self, member: int, call: wire.CallGate) -> Told:
        """Of an earlier request, under the uid that is awaited now."""
        return msgspec.structs.replace(self.heard[member][0], uid=call.uid)

    def dry_run_yes(self, member: int, call: wire.CallGate) -> Told:
        return self.gate.honest(member, call, True, dryRun=True)

    def yes_to_another_hash(self, member: int, call: wire.CallGate) -> Told:
        return self.gate.honest(member, call, True, request_digest="00" * 32)

    def reflected_question(self, member: int, call: wire.CallGate) -> Told:
        return wire.GateReply(
            call.uid, 200, call.webhook_id, call.webhook_timestamp, call.webhook_signature, 0, call.body
        )

    def yes_by_the_other_scheme(self, member: int, call: wire.CallGate) -> Told:
        """Signed by a key of the handler of which this enclave holds the other half, but which it doesn't accept."""
        reply = self.gate.honest(member, call, True)
        keys: GateKeys = self.gate.keys
        other = keys.answer if self._is_v1a(member) else [self.gate.own]
        signature = webhooks.sign(other, call.uid, int(reply.webhook_timestamp), reply.body)  # type: ignore[arg-type]
        return msgspec.structs.replace(reply, webhook_signature=signature)

    def yes_with_another_status(self, member: int, call: wire.CallGate) -> Told:
        return msgspec.structs.replace(self.gate.honest(member, call, True), status=403)

    def nothing(self, member: int, call: wire.CallGate) -> Told:
        return None

    def pending_for_ever(self, member: int, call: wire.CallGate) -> Told:
        return wire.GateReply(call.uid, 202, "", "", "", 1, b"")

    def unreachable(self, member: int, call: wire.CallGate) -> Told:
        return wire.GateUnreachable(call.uid, "the handler said yes, honestly", "redirect")

    def _is_v1a(self, member: int) -> bool:
        return member in self.gate.with_ed25519
