"""Judges what a coordinator shows of its network. All of it is the coordinator's word, except who the signers are."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

import msgspec

from appliance.api.models import Coordinator, Pool, PoolList, Signer
from appliance.checkup.findings import Finding, note, problem, sentence, warning, weak_gate
from appliance.checkup.times import WARN_BELOW_DAYS, ago, days_until, duration, parse
from policies.roster import Roster
from policies.signed_requests import CLOCK_SKEW_S as REFUSED_SKEW_S

# A client's requests are refused where its clock is further off; the enclaves allow some seconds.
CLOCK_SKEW_S = 5.0
SOON_EMPTY_S = 60.0


class NetworkFacts(msgspec.Struct, frozen=True):
    """What was asked of the API, at about the same time."""

    coordinator: Coordinator
    signers: tuple[Signer, ...]
    pools: PoolList


def judge(facts: NetworkFacts, roster: Roster, now: datetime.datetime) -> list[Finding]:
    """Everything about the network that somebody should know."""
    coordinator, signers = facts.coordinator, facts.signers
    online = [signer for signer in signers if signer.online]
    convicted = {signer.name for signer in signers if signer.convicted is not None}
    found = [*_coordinator(coordinator, roster, now, convicted)]
    for signer in signers:
        found += _convicted(signer, roster)
        found += _present(signer, now) if signer.online else _absent(signer, roster, len(online), now)
    found += _links(online)
    for signer in online:
        found += _stopped(signer)
    found += _versions(coordinator, online)
    found += _policies(online)
    for pool in facts.pools.items:
        found += _pool(pool)
    explained = any(finding.severity == "problem" for finding in found)
    if coordinator.trouble and not explained:
        found.append(problem("network", f"nothing can be signed: {coordinator.trouble}", sentence(coordinator.remedy)))
    found += _agreement(online)
    return found


def judge_another(
    coordinator: Coordinator, first: Coordinator, roster: Roster, now: datetime.datetime
) -> Iterator[Finding]:
    """What is wrong with a further coordinator of a network that was judged by what the `first` one shows."""
    yield from _coordinator(coordinator, roster, now, {*coordinator.avoided})
    if coordinator.trouble and coordinator.trouble != first.trouble:
        what = f"nothing can be signed through it: {coordinator.trouble}"
        yield problem(coordinator.name, what, sentence(coordinator.remedy))


def _convicted(signer: Signer, roster: Roster) -> Iterator[Finding]:
    if signer.convicted is None:
        return
    said = signer.convicted
    spare = "" if roster.n > roster.committee_size else "; it still signs, since every committee needs everybody"
    yield problem(
        signer.name,
        f"was convicted of breaking the protocol ({said.ceremony}, by {', '.join(said.by)}): {said.reason}{spare}",
        "`keymoot evidence verify` a file of theirs; ask its operator why; then `keymoot coordinator readmit`.",
    )


def can_sign(facts: NetworkFacts, roster: Roster) -> bool:
    """Whether a signature can be made now: the coordinator sees no trouble, and enough signers can do their part."""
    able = [signer for signer in facts.signers if signer.online and _is_able(signer)]
    return not facts.coordinator.trouble and len(able) >= roster.committee_size


def _is_able(signer: Signer) -> bool:
    """Whether a signer has HSM, gate and a right clock, as far as it was told, and is not frozen for everything."""
    if any(one.pattern == "**" for one in signer.frozen):
        return False
    told = signer.condition
    if told is None:
        return True
    return told.enclave == "ready" and told.gate != "unreachable" and abs(told.clock_ahead_s or 0) <= REFUSED_SKEW_S


def _coordinator(
    coordinator: Coordinator, roster: Roster, now: datetime.datetime, convicted: set[str]
) -> Iterator[Finding]:
    if coordinator.roster_digest != "0x" + roster.digest().hex():
        yield problem(
            coordinator.name,
            "the coordinator's roster is not the one pinned here",
            "Compare `keymoot roster show` on both hosts; believe the file whose fingerprints the operators confirm.",
        )
    for one in coordinator.certificates:
        yield from _certificate(
            coordinator.name,
            one.file,
            days_until(one.expires, now),
            "At the coordinator: `keymoot pki renew DIRECTORY`; for a signers' CA, ask its operator.",
        )
    told = parse(coordinator.time)
    if told is not None and (skew_s := abs((told - now).total_seconds())) > CLOCK_SKEW_S:
        yield warning(
            coordinator.name,
            f"its clock and this host's differ by {duration(skew_s)}",
            "Let both hosts synchronise their clocks (timedatectl status): wrongly dated requests are refused.",
        )
    for name in [name for name in coordinator.avoided if name not in convicted]:
        yield warning(
            name,
            "is left out of committees for a while, since it failed or answered slowly",
            "See its host's load and its logs; it is asked again by itself.",
        )


def _absent(signer: Signer, roster: Roster, online: int, now: datetime.datetime) -> Iterator[Finding]:
    since = ago(signer.since, now)
    what = f"has been away for {since}" if since else "has been away since the coordinator started"
    if signer.away_reason:
        what += f" ({signer.away_reason})"
    spare = online - roster.committee_size
    if spare < 0:
        what += f"; nothing can be signed: {roster.committee_size} signers must be online, {online} are"
    else:
        what += f"; the others sign, {_count(spare, 'more signer')} may go away; no key can be made"
    yield problem(signer.name, what, _absent_remedy(signer))


def _absent_remedy(signer: Signer) -> str:
    if "roster" in signer.away_reason:
        return "Compare `keymoot roster show` on its host, the coordinator's and yours: one roster.yaml is another."
    if signer.away_reason.startswith("refused: certificate"):
        return "Its TLS certificate is another signer's: look at `certificate` in its signer.yaml."
    return "On its host: `keymoot status DIRECTORY`; see whether enclave and signer run and what their logs say last."


def _present(signer: Signer, now: datetime.datetime) -> Iterator[Finding]:
    condition, announced = signer.condition, signer.announced
    if condition is not None and condition.enclave == "hsm-away":
        yield problem(
            signer.name,
            f"its HSM is away: {condition.reason}",
            "On its host: see token and module with `keymoot hsm check --config enclave.yaml`; the enclave returns by "
            "itself.",
        )
    if condition is not None and condition.enclave == "silent":
        yield problem(
            signer.name,
            "its enclave does not answer its signer",
            "On its host: read the enclave's log and the load; restart the enclave if it stays.",
        )
    if condition is not None and condition.gate == "unreachable":
        yield problem(
            signer.name,
            "its gate did not answer the last call, so it refuses to sign",
            "On its host: `keymoot status DIRECTORY` says why; see whether the gate's handler runs.",
        )
    if condition is not None and abs(condition.clock_ahead_s or 0) > CLOCK_SKEW_S:
        yield _clock(signer.name, condition.clock_ahead_s or 0)
    if announced is not None and announced.prss_epoch == 0:
        yield warning(
            signer.name,
            "has no seeds of this network yet",
            "All signers must be online and linked once; the coordinator then sets the network up by itself.",
        )
    yield from _certificate(
        signer.name,
        "its TLS certificate",
        days_until(signer.certificate_expires, now),
        "On its host: `keymoot pki renew DIRECTORY`; it is taken up by itself.",
    )


def _clock(name: str, ahead_s: int) -> Finding:
    severity = problem if abs(ahead_s) > REFUSED_SKEW_S else warning
    return severity(
        name,
        f"its clock is {duration(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} the coordinator's",
        "Find out which one is right (timedatectl status) and synchronise the other: requests are refused where clocks "
        "differ.",
    )


def _certificate(subject: str, what: str, days: int | None, remedy: str) -> Iterator[Finding]:
    if days is not None and days < 0:
        yield problem(subject, f"{what} has expired", remedy)
    elif days is not None and days < WARN_BELOW_DAYS:
        yield warning(subject, f"{what} expires in {_count(days, 'day')}", remedy)


def _links(online: Sequence[Signer]) -> Iterator[Finding]:
    for one, other in combinations(online, 2):
        if other.name not in one.links or one.name not in other.links:
            yield problem(
                f"{one.name}, {other.name}",
                "are connected, but have no channel to each other",
                "Wait some seconds. If it stays: the lines `link` of the coordinator's log say why; compare roster "
                "and versions.",
            )


def _versions(coordinator: Coordinator, online: Sequence[Signer]) -> Iterator[Finding]:
    for signer in online:
        if signer.announced is None:
            continue
        versions = {signer.announced.signer_version, signer.announced.enclave_version}
        if versions != {coordinator.version}:
            yield warning(
                signer.name,
                f"runs version {' and '.join(sorted(versions))}, the coordinator {coordinator.version}",
                "Install the same version on all hosts, one after the other.",
            )


def _stopped(signer: Signer) -> Iterator[Finding]:
    for one in signer.frozen:
        what = "everything" if one.pattern == "**" else f"the labels {one.pattern}"
        by = f" by {one.operator}" if one.operator else ""
        why = f" ({one.reason})" if one.reason else ""
        yield problem(
            signer.name,
            f"is frozen for {what}{by} since {one.since}{why}",
            "Ask its operators why; they end it with `keymoot unfreeze`.",
        )
    if signer.policy is not None and signer.policy.trouble:
        yield problem(
            signer.name,
            f"did not take its new policy, the one of {signer.policy.loaded_at} is in force: {signer.policy.trouble}",
            "Correct the file on its host and reload the enclave (systemctl reload, or kill -HUP).",
        )


def _policies(online: Sequence[Signer]) -> Iterator[Finding]:
    by_digest: dict[str, list[str]] = {}
    for signer in online:
        if signer.policy is not None:
            by_digest.setdefault(signer.policy.digest, []).append(signer.name)
    if len(by_digest) > 1:
        told = "; ".join(f"{', '.join(names)}: {digest[2:18]}" for digest, names in by_digest.items())
        yield note("network", f"the signers' policies differ ({told})", "That may be meant: each decides by its own.")


def _agreement(online: Sequence[Signer]) -> Iterator[Finding]:
    announced = [(signer.name, signer.announced) for signer in online if signer.announced is not None]
    epochs = Counter(one.prss_epoch for _, one in announced)
    if len(epochs) > 1:
        yield warning(
            "network",
            "the signers are at different PRSS epochs: "
            + ", ".join(f"{name} {one.prss_epoch}" for name, one in announced),
            "Once all are online and linked, the coordinator sets up a common one by itself.",
        )
    for name, one in announced:
        if one.gate_mode == "none":
            yield note(name, "has no gate: its policy alone decides", "That is as its enclave.yaml says (gate.mode).")
        elif one.gate_mode == "status":
            yield weak_gate(name)
    if len({one.policy_digest for _, one in announced}) > 1:
        yield note(
            "network",
            "the signers have different policies",
            "That is each operator's right; compare policy.yaml where it is not meant.",
        )


def _pool(pool: Pool) -> Iterator[Finding]:
    if not pool.kept_filled or not pool.ready:
        return
    subject = f"pool {'-'.join(map(str, pool.committee))}"
    if pool.failure:
        severity = problem if pool.available == 0 else warning
        yield severity(
            subject,
            f"presigning fails, {pool.available} presignatures are left: {pool.failure}",
            "It is tried again by itself; the coordinator's log names the ceremony (presigning-failed).",
        )
    elif pool.available == 0:
        yield problem(subject, "is empty; it is being filled", "Wait for the first batch, some seconds.")
    elif _empties(pool):
        yield warning(
            subject,
            f"will be empty in {duration(pool.seconds_to_empty or 0.0)}: {pool.spent_per_s:.0f} a second are used",
            "Requests will wait for presignatures. Give the hosts more CPU, or ask less at once.",
        )
    if pool.busiest_minute and pool.recommended_low > pool.low and pool.busiest_minute > pool.high:
        yield note(
            subject,
            f"its busiest minute used {pool.busiest_minute}, more than its high mark of {pool.high}",
            f"Set pool.low to {pool.recommended_low} and pool.high to {pool.recommended_high} in coordinator.yaml, so "
            "that such a minute finds all it needs.",
        )


def _empties(pool: Pool) -> bool:
    """Whether it is used faster than it is filled, and soon empty."""
    if pool.seconds_to_empty is None or pool.available >= pool.low or pool.seconds_to_empty >= SOON_EMPTY_S:
        return False
    return pool.filled_per_s is None or pool.spent_per_s > pool.filled_per_s


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
