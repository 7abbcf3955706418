"""Whether a request may be signed, as things stand: freezes, the policy with what counts now, and again later.

What the policy permits is charged where it is signed (SPEC 7.4).
"""

from __future__ import annotations

from collections.abc import Callable

from enclave.anomalies import AnomalyWatch
from enclave.asked import Asked, Permitted, check_policy
from enclave.errors import Refused
from enclave.freezes import Freezes
from enclave.ledger import Ledger
from enclave.ledger_keeping import LedgerKeeping
from enclave.reload import SigningRules
from enclave.request_log import RequestLog
from policies.clients import Client
from policies.counters import Charge
from policies.limits import Anomaly
from policies.model import Policy


class Counting:
    """The rules in force, the ledger of this boot, how it is kept, and what is out of the ordinary."""

    def __init__(
        self,
        rules: SigningRules,
        freezes: Freezes,
        ledger: Ledger,
        keeping: LedgerKeeping,
        watch: AnomalyWatch,
        wall_clock: Callable[[], float],
        log: RequestLog,
        tell_soon: Callable[[], None],
    ) -> None:
        """`tell_soon()`: peers are to learn of this enclave's state shortly."""
        self.rules, self.freezes, self.ledger, self.keeping, self.watch = rules, freezes, ledger, keeping, watch
        self._clock, self._log, self._tell_soon = wall_clock, log, tell_soon

    async def permit(self, client: Client, asked: Asked, label: str, request: bytes, request_id: str) -> Permission:
        """SPEC 7.3: put a request to the policy. `request`: its digest; `request_id`: what logs call it. Raises
        `Refused`."""
        policy = self.rules.policy
        if policy.counts:
            await self.keeping.known()
            policy = self.rules.policy
        found = self.check(policy, asked, label)
        if found.anomalies:
            for anomaly in found.anomalies:
                self.watch.count(anomaly)
            self._log.told("anomaly", request, request_id, anomalies=",".join(found.anomalies), client=client.id)
        return Permission(self, policy, client, asked, label, request, found)

    def check(self, policy: Policy, asked: Asked, label: str) -> Permitted:
        """What `policy` says now. Raises `Refused`."""
        unknown = (self.keeping.unknown or self._unstored()) if policy.counts else ""
        counters = self.ledger.present(self.watch.observed(), unknown)
        found = check_policy(policy, asked, label, counters, int(self._clock()))
        if found.to_gate and self.rules.gate_mode == "none":
            raise Refused("policy/anomaly", f"{found.to_gate[0]}, and there is no gate to ask")
        return found

    def check_stored(self) -> None:
        """SPEC 7.6. Raises `Refused` where too little is known of what became of earlier charges."""
        if reason := self._unstored():
            raise Refused("policy/limits", reason)

    def _unstored(self) -> str:
        reason = self.keeping.unstored
        if reason:
            # Once it is stored, that is known within a second.
            self._tell_soon()
        return reason

    def charge(self, request: bytes) -> dict[str, int | list[str]]:
        """SPEC 7.4, 7.6: for good; the facts for the audit entry of the share."""
        facts = self.ledger.charge(request)
        self.keeping.on_charge()
        self._tell_soon()
        return facts


class Permission:
    """What was permitted for one request. `to_gate`: the anomalies that its gate must see."""

    def __init__(
        self,
        counting: Counting,
        policy: Policy,
        client: Client,
        asked: Asked,
        label: str,
        request: bytes,
        found: Permitted,
    ) -> None:
        self._counting, self._policy, self._client, self._asked = counting, policy, client, asked
        self._label, self._request, self._found = label, request, found
        self.to_gate: tuple[Anomaly, ...] = found.to_gate

    def again(self) -> Charge:
        """SPEC 4.11, 4.12: whether it holds still, also by another policy that is in force by now; what is to be
        charged. Raises `Refused`."""
        self._counting.freezes.check(self._label)
        policy = self._counting.rules.policy
        if policy is self._policy:
            if self._found.charge:
                self._counting.check_stored()
            return self._found.charge
        if policy.client(self._client.id) != self._client:
            raise Refused("request/client", f"the key of client {self._client.id} was revoked meanwhile")
        # What is held for it is not in its own way.
        self._counting.ledger.release(self._request)
        found = self._counting.check(policy, self._asked, self._label)
        if not_told := set(found.to_gate) - set(self.to_gate):
            raise Refused("policy/anomaly", f"{min(not_told)}, of which the gate was not told: ask again")
        self._policy, self._found = policy, found
        return found.charge
