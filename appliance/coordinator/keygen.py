"""Key generation (SPEC 2): one key, all signers; what comes of it counts only with a verified certificate."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from appliance.api.certificates import CertificateRefused, verify_certificate
from appliance.coordinator.ceremonies import Ceremonies, Ceremony
from appliance.coordinator.errors import CeremonyEnded, Rejected, failure
from appliance.coordinator.gates import Gates
from appliance.coordinator.prepare import CEREMONY_TIMEOUT_S, collect_nonces
from appliance.coordinator.recall import After, Earlier, Recall, Recalled, until_done
from appliance.store.waiting import Waiting
from enclave import wire
from policies.roster import Roster

ACTIVATE_TIMEOUT_S = 15.0
REPLAYED = "request/replayed"

Certificate = tuple[wire.SignedAcknowledgement, ...]


@dataclass(frozen=True)
class NewKey:
    """A key with its verified certificate, and the signers that have said they can use it."""

    acknowledgement: wire.Acknowledgement
    certificate: Certificate
    activated: frozenset[int]


@dataclass(frozen=True)
class Pending:
    """`told` hears of each gate that needs time; `before`: what it heard before a restart; `wall_clock`: Unix s."""

    told: Callable[[Waiting], Awaitable[None]]
    wall_clock: Callable[[], float]
    before: Waiting | None = None


async def keygen(
    ceremonies: Ceremonies,
    roster: Roster,
    request: wire.ClientRequest,
    label: str,
    recall: Recall,
    everybody: Callable[[], Awaitable[None]],
    pending: Pending,
    slots: asyncio.Semaphore,
    *,
    recall_first: bool = False,
) -> NewKey:
    """The key that `request` asks for: made by all signers, or the one that was made before (SPEC 4.10).

    `everybody()` returns once all signers are linked. `pending`: what is told of gates that need time. `slots`: so many
    keys are made at once; none is taken while gates decide. Raises `CeremonyEnded` or `Rejected`.
    """

    def ask(ceremony: bytes, _: tuple[int, ...], after: bytes | None) -> wire.ConsentOrder:
        return wire.ConsentOrder(ceremony, request, after)

    gates = Gates(ceremonies, ask, pending.told, pending.wall_clock, pending.before)

    async def attempt(after: After) -> NewKey:
        await everybody()
        # SPEC 6.11
        await gates.consent(roster.indices, after)
        async with slots:
            return await _make(ceremonies, roster, request, label, after)

    async def recalled() -> tuple[NewKey | None, After]:
        await everybody()
        return _made_before(await recall.ask(request), roster, label)

    async def nothing(_: int) -> None:
        return

    try:
        # Enclaves carry out a request for a key once; its client may sign it anew.
        return await until_done(attempt, recalled, nothing, gates.decided, recall_first=recall_first, most=1)
    except Rejected as error:
        if error.rule != REPLAYED:
            raise
        raise CeremonyEnded(error.rule, error.reason, error.signer) from error


def _made_before(recalled: Recalled, roster: Roster, label: str) -> tuple[NewKey | None, After]:
    """The key, where all acknowledgements of one ceremony are there, or somebody holds its certificate and more
    signers than may be corrupted say that this request made it."""

    def everybody(members: tuple[int, ...]) -> bool:
        return members == roster.indices

    for each in recalled.complete(wire.KeysAcknowledged, everybody):
        certificate = tuple(signed for j in roster.indices for signed in each[j].acknowledgements)
        key = _proven(certificate, roster, label, frozenset())
        if key is not None:
            return key, {}
    activated = recalled.of_kind(wire.KeysActivated)
    heard = _Heard(
        {j: report.acknowledgements[0] for j, report in recalled.of_kind(wire.KeysAcknowledged).items()},
        {j: report.certificates[0] for j, report in activated.items() if report.certificates},
    )
    key = _backed(heard, roster, label)
    return (key, {}) if key is not None else (None, recalled.after())


@dataclass
class _Heard:
    """What each signer has said itself: its own acknowledgement, and the certificate that it has activated."""

    acknowledged: dict[int, wire.SignedAcknowledgement] = field(default_factory=dict)
    certificates: dict[int, Certificate] = field(default_factory=dict)

    def backers(self) -> Counter[str]:
        """By key id, how many signers say that this is the key. Each counts once."""
        named = self.acknowledged | {j: certificate[0] for j, certificate in self.certificates.items() if certificate}
        return Counter(signed.acknowledgement.key_id for signed in named.values())


def _backed(heard: _Heard, roster: Roster, label: str) -> NewKey | None:
    """The key of a certificate that verifies and that more signers name than may be corrupted, so that nobody passes
    off another key's."""
    backers = heard.backers()
    for certificate in heard.certificates.values():
        key = _proven(certificate, roster, label, frozenset())
        if key is not None and backers[key.acknowledgement.key_id] > roster.tolerate:
            key_id = key.acknowledgement.key_id
            active = (j for j, each in heard.certificates.items() if each and each[0].acknowledgement.key_id == key_id)
            return replace(key, activated=frozenset(active))
    return None


def _proven(certificate: Certificate, roster: Roster, label: str, activated: frozenset[int]) -> NewKey | None:
    """The key with its certificate, where that verifies and is of this label."""
    try:
        proven = verify_certificate(certificate, roster)
    except CertificateRefused:
        return None
    return NewKey(proven, certificate, activated) if proven.label == label else None


async def _make(
    ceremonies: Ceremonies, roster: Roster, request: wire.ClientRequest, label: str, after: After
) -> NewKey:
    """Let all signers make a key. Raises `CeremonyEnded` or `Rejected`.

    Once all acknowledgements are there the key exists, whatever fails afterwards: who missed its activation gets the
    certificate later.
    """
    with ceremonies.open(roster.indices) as ceremony:
        nonces = await collect_nonces(ceremony, "keygen")
        for index in ceremony.members:
            ceremony.order(index, wire.KeygenOrder(ceremony.id, (request,), nonces, after.get(index)))
        after.update(dict.fromkeys(ceremony.members, ceremony.id))
        heard = _Heard()
        try:
            await _collect(ceremony, heard)
        except (CeremonyEnded, Rejected):
            if len(heard.acknowledged) < roster.n and _backed(heard, roster, label) is None:
                ceremony.abandon()
                raise
    key = _backed(heard, roster, label)
    if key is not None:
        return key
    if len(heard.acknowledged) < roster.n:
        raise CeremonyEnded("certificate", "the signers do not agree which key was made: try again")
    certificate = tuple(heard.acknowledged[index] for index in roster.indices)
    try:
        proven = verify_certificate(certificate, roster)
    except CertificateRefused as error:
        raise CeremonyEnded("certificate", str(error)) from error
    if proven.label != label:
        raise CeremonyEnded("certificate", f"the key is labelled {proven.label}, not {label}")
    return NewKey(proven, certificate, frozenset())


async def _collect(ceremony: Ceremony, heard: _Heard) -> None:
    """Every member's acknowledgement and its word that the key is active: each from itself alone, since another
    signer's word may be of another key."""
    deadline_s = asyncio.get_running_loop().time() + CEREMONY_TIMEOUT_S
    members = set(ceremony.members)
    while heard.certificates.keys() != members:
        index, report = await ceremony.next(deadline_s, members - heard.certificates.keys())
        match report:
            case wire.KeysAcknowledged(_, (signed,)) if signed.acknowledgement.index == index:
                heard.acknowledged.setdefault(index, signed)
            case wire.KeysActivated(_, (certificate,)) if certificate:
                heard.certificates.setdefault(index, certificate)
            case wire.Recalled():
                raise Earlier(index)
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
