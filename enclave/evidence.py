"""SPEC 0.12: evidence against a signer, as a file that convicts anywhere: written here, verified without an enclave.

Nothing in it is secret once it is written: signed bodies of a ceremony that failed, and sub-seeds of a batch that every
honest member has aborted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from enclave.channels.handshake import SessionProof, session_digest, verify_identity
from enclave.errors import CallerError, Malformed, Unproven
from enclave.members import ceremony_context
from enclave.protocol.charges import Charge, Facts, Rules, Verdict, judge
from enclave.protocol.keygen import KeyPlan
from enclave.protocol.keygen_rules import KeygenRules
from enclave.protocol.presign_rules import PresignRules
from enclave.protocol.setup_rules import SetupRules
from enclave.wire import (
    EVIDENCE_PART_BYTES,
    MAX_BATCH,
    MAX_EVIDENCE_PARTS,
    MAX_KEYS_PER_CEREMONY,
    Bytes32,
    SignedAcknowledgement,
    SignedNonce,
    Wire,
    decode,
)
from policies.roster import Roster
from policies.transcript import DIGEST_BYTES, Tag, digest

VERSION: Final = 1
MAX_EVIDENCE_BYTES = MAX_EVIDENCE_PARTS * EVIDENCE_PART_BYTES


Parameter = Annotated[bytes, msgspec.Meta(max_length=256)]


class Evidence(Wire, frozen=True):
    """One charge, and what binds its signatures to a ceremony and to identity keys. `parameters` and `nonces` are those
    of the ceremony's context; `sessions`: one for each member, ascending."""

    version: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)]
    kind: Annotated[str, msgspec.Meta(pattern=r"^(setup|keygen|presign)$(?!\n)")]
    roster_digest: Bytes32
    parameters: Annotated[tuple[Parameter, ...], msgspec.Meta(max_length=MAX_KEYS_PER_CEREMONY + 1)]
    nonces: Annotated[tuple[SignedNonce, ...], msgspec.Meta(max_length=16)]
    sessions: Annotated[tuple[SessionProof, ...], msgspec.Meta(max_length=16)]
    charge: Charge


@dataclass(frozen=True)
class CeremonyRecord:
    """What a running ceremony keeps so that it can show evidence: everything of `Evidence` but the charge."""

    kind: str
    roster_digest: bytes
    parameters: tuple[bytes, ...]
    nonces: tuple[SignedNonce, ...]
    sessions: tuple[SessionProof, ...]

    def evidence(self, charge: Charge) -> Evidence:
        """The evidence for one charge."""
        return Evidence(VERSION, self.kind, self.roster_digest, self.parameters, self.nonces, self.sessions, charge)


@dataclass(frozen=True)
class Conviction:
    """What a piece of evidence proves: whom it convicts, in which ceremony."""

    kind: str
    context: bytes
    members: tuple[int, ...]
    verdict: Verdict


def evidence_digest(data: bytes) -> bytes:
    """The 32 bytes by which a file of evidence is named."""
    return digest(Tag.EVIDENCE, data)


def verify_evidence(data: bytes, roster: Roster) -> Conviction:
    """Judge a file against a pinned roster. Raises `Malformed`, or `Unproven` where it proves nothing."""
    if len(data) > MAX_EVIDENCE_BYTES:
        raise Malformed(f"evidence of more than {MAX_EVIDENCE_BYTES} bytes")
    evidence = decode(data, Evidence)
    if evidence.roster_digest != roster.digest():
        raise Unproven("it is of another roster")
    members = tuple(nonce.index for nonce in evidence.nonces)
    allowed = roster.is_committee(members) if evidence.kind == "presign" else members == roster.indices
    if not allowed or len(evidence.sessions) != len(members):
        raise Unproven("not the members of such a ceremony")
    hellos = {j: proof.verify(roster, j) for j, proof in zip(members, evidence.sessions, strict=True)}
    sessions = {j: session_digest(j, hello.boot_nonce, hello.frame_key) for j, hello in hellos.items()}
    context = ceremony_context(evidence.kind, evidence.roster_digest, evidence.parameters, evidence.nonces, sessions)
    frame_keys = {j: hello.frame_key for j, hello in hellos.items()}
    rules = _rules(evidence.kind, evidence.parameters, roster)
    verdict = judge(Facts(context, members, roster.tolerate, frame_keys, rules), evidence.charge)
    return Conviction(evidence.kind, context, members, verdict)


def _rules(kind: str, parameters: Sequence[bytes], roster: Roster) -> Rules:
    """The protocol's rules for these parameters, as `enclave.orders` makes them. Raises `Unproven`."""
    if kind == "setup":
        return SetupRules()
    if kind == "presign":
        count = int.from_bytes(parameters[2], "big") if len(parameters) == 3 else 0
        if not 1 <= count <= MAX_BATCH:
            raise Unproven("not the parameters of a batch")
        return PresignRules(count)
    if len(parameters) < 2 or any(len(wanted) < DIGEST_BYTES for wanted in parameters[1:]):
        raise Unproven("not the parameters of a key generation")
    try:
        labels = tuple(wanted[DIGEST_BYTES:].decode() for wanted in parameters[1:])
    except UnicodeDecodeError:
        raise Unproven("not the parameters of a key generation") from None
    plan = KeyPlan(roster.network, roster.digest(), roster.tolerate, int.from_bytes(parameters[0], "big"), labels)

    def verifies(signed: SignedAcknowledgement) -> bool:
        try:
            point = roster.signer(signed.acknowledgement.index).identity_point
        except CallerError:
            return False
        return verify_identity(point, signed.acknowledgement.digest(), signed.signature)

    return KeygenRules(plan, verifies)
