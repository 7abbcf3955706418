"""Key generation (SPEC 2): one key, all signers; what comes of it counts only with a verified certificate."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from appliance.api.certificates import CertificateRefused, verify_certificate
from appliance.coordinator.ceremonies import Ceremonies, Ceremony
from appliance.coordinator.errors import CeremonyEnded, Rejected, failure
from appliance.coordinator.prepare import collect_nonces
from enclave import wire
from policies.roster import Roster

KEYGEN_TIMEOUT_S = 75.0
ACTIVATE_TIMEOUT_S = 15.0

Certificate = tuple[wire.SignedAcknowledgement, ...]


@dataclass(frozen=True)
class NewKey:
    """A key with its verified certificate, and the signers that have said they can use it."""

    acknowledgement: wire.Acknowledgement
    certificate: Certificate
    activated: frozenset[int]


async def keygen(ceremonies: Ceremonies, roster: Roster, request: wire.ClientRequest, label: str) -> NewKey:
    """Let all signers make the key that `request` asks for. Raises `CeremonyEnded` or `Rejected`.

    Once all acknowledgements are there the key exists, whatever fails afterwards: who missed its activation gets the
    certificate later.
    """
    with ceremonies.open(roster.indices) as ceremony:
        nonces = await collect_nonces(ceremony, "keygen")
        ceremony.order_all(wire.KeygenOrder(ceremony.id, (request,), nonces))
        acknowledged: dict[int, wire.SignedAcknowledgement] = {}
        activated: set[int] = set()
        try:
            await _collect(ceremony, acknowledged, activated)
        except (CeremonyEnded, Rejected):
            if len(acknowledged) < roster.n:
                ceremony.abandon()
                raise
    certificate = tuple(acknowledged[index] for index in roster.indices)
    try:
        proven = verify_certificate(certificate, roster)
    except CertificateRefused as error:
        raise CeremonyEnded("certificate", str(error)) from error
    if proven.label != label:
        raise CeremonyEnded("certificate", f"the key is labelled {proven.label}, not {label}")
    return NewKey(proven, certificate, frozenset(activated))


async def _collect(
    ceremony: Ceremony, acknowledged: dict[int, wire.SignedAcknowledgement], activated: set[int]
) -> None:
    """Every member's acknowledgement and its word that the key is active; a whole certificate serves as well."""
    deadline_s = asyncio.get_running_loop().time() + KEYGEN_TIMEOUT_S
    members = set(ceremony.members)
    while activated != members:
        index, report = await ceremony.next(deadline_s, members - activated)
        match report:
            case wire.KeysAcknowledged(_, (signed,)) if signed.acknowledgement.index == index:
                acknowledged.setdefault(index, signed)
            case wire.KeysActivated(_, (certificate,)):
                activated.add(index)
                for signed in certificate:
                    if signed.acknowledgement.index in members:
                        acknowledged.setdefault(signed.acknowledgement.index, signed)
            case _:
                raise failure(index, report)


async def activate(ceremonies: Ceremonies, index: int, key_id: str, certificate: Certificate) -> None:
    """Let signer `index`, which has the key pending, activate it (SPEC 2.7). Raises `CeremonyEnded`."""
    with ceremonies.open((index,)) as ceremony:
        ceremony.order_all(wire.ActivateOrder(ceremony.id, key_id, certificate))
        try:
            await ceremony.one_each(wire.KeysActivated, ACTIVATE_TIMEOUT_S)
        except Rejected as error:
            raise CeremonyEnded(error.rule, error.reason, index) from error
