"""The step before every ceremony: one fresh signed nonce of each member (SPEC 0.4)."""

from __future__ import annotations

from appliance.coordinator.ceremonies import Ceremony
from enclave import wire

NONCE_TIMEOUT_S = 15.0
# For a setup, a key or a batch, and for finding out who broke it: enclaves end both by themselves before.
CEREMONY_TIMEOUT_S = 2 * wire.CEREMONY_DEADLINE_S + 15.0


async def collect_nonces(ceremony: Ceremony, purpose: str) -> tuple[wire.SignedNonce, ...]:
    """The members' nonces, in the order of the members. Raises `CeremonyEnded`."""
    ceremony.order_all(wire.PrepareOrder(ceremony.id, purpose))
    reports = await ceremony.one_each(wire.NonceReport, NONCE_TIMEOUT_S)
    return tuple(reports[index].nonce for index in ceremony.members)
