"""Signers, pools and readiness as the API shows them."""

from __future__ import annotations

from collections.abc import Set

import msgspec

from appliance import relay
from appliance.api.models import (
    Announced,
    Condition,
    Convicted,
    Frozen,
    Health,
    PolicyInForce,
    Pool,
    PoolList,
    Readiness,
    Signer,
    SignerList,
)
from appliance.coordinator.consumption import recommended
from appliance.coordinator.convictions import Conviction
from appliance.coordinator.network import Network
from appliance.coordinator.sessions import Session, Signers
from appliance.expiry import iso
from enclave import wire
from policies.errors import Unavailable
from policies.roster import Roster, RosterSigner


def show_health(network: Network, failure: Unavailable | None, *, details: bool) -> Health:
    """What is there and what is missing, for a person or a probe that wants the process alone. `failure`: why the
    store does not take writes."""
    trouble = network.trouble() if failure is None else str(failure)
    if not details:
        return Health(status="degraded" if trouble else "ready")
    return Health(
        status="degraded" if trouble else "ready",
        trouble=trouble,
        online=tuple(network.signers.name(index) for index in network.signers.online()),
        presignatures={
            "-".join(map(str, committee)): network.pools.available(committee)
            for committee in sorted(network.pools.committees())
        },
    )


def sentence(network: Network, failure: Unavailable | None) -> str:
    """How the network is, for `systemctl status`. `failure` as in `show_health`."""
    trouble = network.trouble() if failure is None else str(failure)
    held = sum(network.pools.available(committee) for committee in network.pools.committees())
    there = f"{len(network.signers.online())} signers online, {held} presignatures"
    return f"Nothing can be signed: {trouble}; {there}" if trouble else f"Ready; {there}"


def show_readiness(network: Network) -> Readiness:
    """The committees that can sign now."""
    return Readiness(tuple(committee for committee in network.committees() if network.can_sign(committee)))


def show_signers(roster: Roster, network: Network) -> SignerList:
    """Every signer of the roster; of those that are online what they have announced."""
    signers, convictions = network.signers, network.convictions
    sessions = {entry.index: signers.session(entry.index) for entry in roster.signers}
    conditions = [session.condition for session in sessions.values() if session is not None]
    digests = {told.policy.digest for told in conditions if told is not None and told.policy is not None}
    shown = (_signer(entry, sessions[entry.index], signers, digests) for entry in roster.signers)
    return SignerList(
        tuple(msgspec.structs.replace(one, convicted=_convicted(convictions.of(one.name))) for one in shown)
    )


def _convicted(conviction: Conviction | None) -> Convicted | None:
    if conviction is None:
        return None
    at = _iso(float(conviction.at_s)) or ""
    return Convicted(at, conviction.ceremony, conviction.step, conviction.reason, conviction.by, conviction.evidence)


def show_pools(network: Network, burst: int | None) -> PoolList:
    """Every pool that is kept filled, holds something or gave something in the last minute, with marks for a `burst`
    of signatures."""
    kept = set(network.refill.preferred())
    shown = sorted({*network.committees(), *network.pools.spent_lately()})
    # The fullest pool is used next, so a burst is spread over those that are kept.
    share = None if burst is None else -(-burst // max(len(kept), 1))
    pools = tuple(_pool(network, committee, committee in kept, share) for committee in shown)
    return PoolList(pools, waiting=len(network.line), burst=burst)


def _pool(network: Network, committee: tuple[int, ...], kept: bool, burst: int | None) -> Pool:
    """`burst`: this pool's part of it; None for its busiest minute."""
    marks, filling = network.refill.marks(), network.refill.filling(committee)
    consumption = network.pools.consumption(committee)
    available, spent_per_s = network.pools.available(committee), consumption.per_s()
    busiest = consumption.busiest_minute
    wanted = recommended(
        busiest if burst is None else burst,
        spent_per_s,
        network.refill.settings.batch,
        filling.batch_s or 0.0,
        network.refill.most(),
    )
    return Pool(
        committee=committee,
        available=available,
        low=marks.low,
        high=marks.high,
        kept_filled=kept,
        ready=network.signers.ready(committee),
        filling=filling.under_way,
        failure=filling.failure,
        spent_per_s=round(spent_per_s, 3),
        seconds_to_empty=round(available / spent_per_s, 1) if spent_per_s else None,
        filled_per_s=round(network.refill.settings.batch / filling.batch_s, 1) if filling.batch_s else None,
        busiest_minute=busiest,
        recommended_low=wanted.low,
        recommended_high=wanted.high,
    )


def _signer(entry: RosterSigner, session: Session | None, signers: Signers, digests: Set[bytes]) -> Signer:
    """`digests`: of the policies of all that are online."""
    absence = signers.absence(entry.index)
    return Signer(
        index=entry.index,
        name=entry.name,
        operator=entry.operator,
        fingerprint=entry.fingerprint,
        online=session is not None,
        links=() if session is None else tuple(signers.name(index) for index in sorted(session.links)),
        announced=None if session is None else _announced(session),
        condition=None if session is None else _condition(session.condition, session.clock_ahead_s),
        policy=None if session is None else _policy(session.condition, digests),
        frozen=() if session is None or session.condition is None else _frozen(session.condition.freezes),
        since=_iso(absence.since_s if session is None else session.since_s),
        away_reason=absence.reason if session is None else "",
        certificate_expires=None if session is None else _iso(session.certificate_expires_s),
    )


def _condition(told: relay.Condition | None, clock_ahead_s: int | None) -> Condition | None:
    return None if told is None else Condition(told.enclave, told.reason, told.gate, clock_ahead_s)


def _policy(told: relay.Condition | None, digests: Set[bytes]) -> PolicyInForce | None:
    if told is None or told.policy is None or not told.policy.loaded_at_s:
        return None
    policy = told.policy
    return PolicyInForce("0x" + policy.digest.hex(), iso(policy.loaded_at_s), policy.trouble, len(digests) > 1)


def _frozen(freezes: tuple[wire.Freeze, ...]) -> tuple[Frozen, ...]:
    return tuple(Frozen(one.pattern, one.operator, iso(one.serial / 1000), one.reason) for one in freezes)


def _iso(unix_s: float | None) -> str | None:
    return None if unix_s is None else iso(unix_s)


def _announced(session: Session) -> Announced:
    enclave = session.enclave
    return Announced(
        prss_epoch=session.prss_epoch,
        gate_mode=enclave.gate_mode,
        policy_digest="0x" + session.policy_digest.hex(),
        signer_version=session.signer_version,
        enclave_version=enclave.enclave_version,
    )
