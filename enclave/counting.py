"""Whether a request may be signed, as things stand: freezes, the policy with what counts now, and again later.

What the policy permits is charged where it is signed (SPEC 7.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enclave.anomalies import AnomalyWatch
from enclave.asked import Asked, Permitted, check_policy
from enclave.errors import Refused
from enclave.freezes import Freezes
from enclave.ledger import Ledger
from enclave.ledger_keeping import LedgerKeeping
from enclave.reload import SigningRules
from enclave.request_log import RequestLog
from policies.clients import Client
from policies.counters import NOTHING, Charge, Counters
from policies.limits import Anomaly
from policies.model import Policy


class Lapsed(Refused):
    """What was permitted must be decided anew: its gate was not told of something that it must see, or approvals have
    expired, and there may be others by now."""


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
        wall_doubt: Callable[[], str],
    ) -> None:
        """`tell_soon()`: peers are to learn of this enclave's state shortly. `wall_doubt()`: why the wall clock is not
        to be believed, empty where it is."""
        self.rules, self.freezes, self.ledger, self.keeping, self.watch = rules, freezes, ledger, keeping, watch
        self._clock, self._log, self._tell_soon, self._wall_doubt = wall_clock, log, tell_soon, wall_doubt

    async def permit(self, client: Client, asked: Asked, label: str, request: bytes, request_id: str) -> Permission:
        """SPEC 7.3: put a request to the policy. `request`: its digest; `request_id`: what logs call it. Raises
        `Refused`."""
        policy = self.rules.policy
        if policy.counts:
            await self.keeping.known()
            policy = self.rules.policy
        # It verified by the policy of then: HSM and store may have taken their time since.
        _check_same(policy, client)
        found = self.check(policy, asked, label, request)
        self.tell(found.anomalies, client, request, request_id)
        return Permission(self, policy, client, asked, label, request, request_id, found)

    def tell(self, anomalies: Sequence[Anomaly], client: Client, request: bytes, request_id: str) -> None:
        """They were found in a request."""
        if anomalies:
            for anomaly in anomalies:
                self.watch.count(anomaly)
            self._log.told("anomaly", request, request_id, anomalies=",".join(anomalies), client=client.id)

    def check(self, policy: Policy, asked: Asked, label: str, request: bytes, charged: Charge = NOTHING) -> Permitted:
        """What `policy` says now; what counts of the request itself, such as what it was `charged`, is not in its way.
        Raises `Refused`."""
        # SPEC 7.8
        doubt = self._wall_doubt() if policy.has_hours else ""
        observed = self.watch.observed()
        if policy.counts:
            unknown = self.keeping.unknown or self._unstored()
            counters = self.ledger.present(observed, unknown, request, charged, doubt)
        else:
            counters = Counters(observed=observed, clock_doubt=doubt)
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
        request_id: str,
        found: Permitted,
    ) -> None:
        self._counting, self._policy, self._client, self._asked = counting, policy, client, asked
        self._label, self._request, self._request_id, self._found = label, request, request_id, found
        self.to_gate: tuple[Anomaly, ...] = found.to_gate

    def again(self, charged: Charge = NOTHING, *, anew: bool = False) -> Charge:
        """SPEC 4.11, 4.12: whether it holds still, also by another policy that is in force by now; what is to be
        charged. `charged`: what the request was charged before. `anew`: by what counts and happens now (SPEC 7.3), also
        where the policy is the same; not once others may have spent their presignatures. Raises `Refused`, `Lapsed`."""
        self._counting.freezes.check(self._label)
        policy = self._counting.rules.policy
        if policy is not self._policy or (anew and policy.depends_on_when):
            self._decide(policy, charged)
        elif self._found.charge:
            self._counting.check_stored()
        return self._found.charge

    def _decide(self, policy: Policy, charged: Charge) -> None:
        _check_same(policy, self._client)
        try:
            found = self._counting.check(policy, self._asked, self._label, self._request, charged)
        except Refused as refusal:
            if refusal.rule == "policy/approvals":
                raise Lapsed(refusal.rule, refusal.reason) from None
            raise
        if not_told := set(found.to_gate) - set(self.to_gate):
            raise Lapsed("policy/anomaly", f"{min(not_told)}, of which the gate was not told: ask again")
        new = tuple(anomaly for anomaly in found.anomalies if anomaly not in self._found.anomalies)
        self._counting.tell(new, self._client, self._request, self._request_id)
        self._policy, self._found = policy, found


def _check_same(policy: Policy, client: Client) -> None:
    """Raises `Refused` unless `policy` lists `client` with the very key that its request verified by."""
    if policy.client(client.id) != client:
        raise Refused("request/client", f"the key of client {client.id} was revoked meanwhile")
