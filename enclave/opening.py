"""What all ceremonies begin with: nonces, context and keys (SPEC 0.2, 0.4), and what orders need of the enclave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enclave.audit import AuditLog
from enclave.ceremonies import Ceremonies, Ticket
from enclave.channels.frames import PeerKeys, ceremony_keys
from enclave.channels.handshake import Link
from enclave.channels.links import Links
from enclave.errors import Unavailable
from enclave.evidence import CeremonyRecord
from enclave.members import NonceBook, OwnSession, ceremony_context, verify_nonces
from enclave.pool import PresignaturePool
from enclave.prss_state import PrssState
from enclave.setup_turn import SetupTurn
from enclave.shares import Vault
from enclave.tasks import Promise, Timers
from enclave.wire import AuditEntry, Kept, ReportBody, SignedNonce
from policies.roster import Roster


@dataclass(frozen=True)
class Surroundings:
    """What carrying out orders needs of the rest of the enclave. Effects are callables."""

    roster: Roster
    session: OwnSession
    nonces: NonceBook
    setup_turn: SetupTurn
    links: Links
    ceremonies: Ceremonies
    timers: Timers
    vault: Vault
    pool: PresignaturePool
    prss: PrssState
    audit: AuditLog
    random: Callable[[int], bytes]
    sign_identity: Callable[[bytes], Promise[bytes]]
    send: Callable[[str, int, bool, bytes], None]
    report: Callable[[str, ReportBody, tuple[AuditEntry, ...], Kept | None], None]
    to_worker: Callable[[bytes], None]


def open_ceremony(
    around: Surroundings,
    coordinator: str,
    ceremony: bytes,
    kind: str,
    members: tuple[int, ...],
    parameters: Sequence[bytes],
    nonces: Sequence[SignedNonce],
) -> tuple[Ticket, list[PeerKeys], dict[int, Link]]:
    """SPEC 0.2, 0.4: verify the nonces, spend ours, derive the context and every peer's keys."""
    me = around.session
    around.ceremonies.check_room(coordinator)
    links: dict[int, Link] = {}
    for j in members:
        if j != me.index:
            link = around.links.get(coordinator, j)
            if link is None:
                raise Unavailable(f"no link with signer {j} through {coordinator}", "try again shortly")
            links[j] = link
    verify_nonces(nonces, members, kind, me.index, {j: link.peer for j, link in links.items()})
    around.nonces.spend(coordinator, nonces[members.index(me.index)], kind)
    sessions = {j: link.peer.digest() for j, link in links.items()} | {me.index: me.digest()}
    context = ceremony_context(kind, around.roster.digest(), parameters, nonces, sessions)
    keys = [ceremony_keys(link.key, context, me.index, j, link.peer.frame_key) for j, link in links.items()]
    proofs = {j: link.proofs[0] for j, link in links.items()}
    # Our own of any of these handshakes: all show the frame key of this boot.
    proofs[me.index] = next(iter(links.values())).proofs[-1]
    shown = tuple(proofs[j] for j in members)
    record = CeremonyRecord(kind, around.roster.digest(), tuple(parameters), tuple(nonces), shown)
    return Ticket(coordinator, ceremony, kind, context, members, record), keys, links
