"""Signers, pools and readiness as the API shows them."""

from __future__ import annotations

from appliance.api.models import Announced, Health, Pool, PoolList, Readiness, Signer, SignerList
from appliance.coordinator.network import Network
from appliance.coordinator.sessions import Session, Signers
from policies.roster import Roster, RosterSigner


def show_health(network: Network) -> Health:
    """What is there and what is missing, for a person or a probe that wants the process alone."""
    trouble = network.trouble()
    return Health(
        status="degraded" if trouble else "ready",
        trouble=trouble,
        online=tuple(network.signers.name(index) for index in network.signers.online()),
        presignatures={
            "-".join(map(str, committee)): network.pools.available(committee)
            for committee in sorted(network.pools.committees())
        },
    )


def show_readiness(network: Network) -> Readiness:
    """The committees that can sign now."""
    return Readiness(tuple(committee for committee in network.committees() if network.can_sign(committee)))


def show_signers(roster: Roster, signers: Signers) -> SignerList:
    """Every signer of the roster; of those that are online what they have announced."""
    return SignerList(tuple(_signer(entry, signers.session(entry.index), signers) for entry in roster.signers))


def show_pools(network: Network) -> PoolList:
    """Every pool that is kept filled or holds something."""
    (low, high), kept = network.marks(), set(network.preferred())
    return PoolList(
        tuple(
            Pool(
                committee=committee,
                available=network.pools.available(committee),
                low=low,
                high=high,
                kept_filled=committee in kept,
                ready=network.signers.ready(committee),
            )
            for committee in network.committees()
        )
    )


def _signer(entry: RosterSigner, session: Session | None, signers: Signers) -> Signer:
    return Signer(
        index=entry.index,
        name=entry.name,
        operator=entry.operator,
        fingerprint=entry.fingerprint,
        online=session is not None,
        links=() if session is None else tuple(signers.name(index) for index in sorted(session.links)),
        announced=None if session is None else _announced(session),
    )


def _announced(session: Session) -> Announced:
    enclave = session.enclave
    return Announced(
        prss_epoch=session.prss_epoch,
        gate_mode=enclave.gate_mode,
        policy_digest="0x" + enclave.policy_digest.hex(),
        signer_version=session.signer_version,
        enclave_version=enclave.enclave_version,
    )
