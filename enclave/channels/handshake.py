"""The handshake of a link between two enclaves: mutually signed, post-quantum hybrid. Pure: no I/O, no HSM calls.

The lower index initiates:

    i → j   Open    H_i
    j → i   Answer  H_j, ct, sign_j("responder", T), confirm_j      T = H(H_i ‖ H_j ‖ ct)
    i → j   Finish  sign_i("initiator", T), confirm_i

`H` = {suite, roster digest, epoch, from, to, boot nonce, nonce, X25519 key, ML-KEM-768 encapsulation key, Ed25519
frame key, state version and audit head, those with which the boot began, the sender's clock}. The link key is HKDF
over both shared secrets, bound to `T`. Both HSM identity keys sign `T`, so an old hello of somebody's leaked memory
opens nothing; both ends prove the link key before its first use. Whoever signs does it between `…_transcript` and
`…_message` here, since HSM calls take time.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from enclave.audit import ChainEnd
from enclave.errors import LinkFault, Unproven
from enclave.wire import Bytes32, Count, Epoch, Signature64, Wire, encode
from policies.roster import Index, Roster
from policies.transcript import Tag, digest, encode_parts

SUITE = "keymoot-1/x25519+mlkem768/hkdf-sha256/chacha20poly1305/ed25519"
KEM_KEY_BYTES = 1184
KEM_CIPHERTEXT_BYTES = 1088
SIGNATURE_BYTES = 64
# SPEC 7.8: how old an initiator's hello may be when the answer comes. No attempt is longer.
MAX_HELLO_AGE_S = 30.0
RESPONDER, INITIATOR = b"responder", b"initiator"


class Hello(Wire, frozen=True):
    """What one end says of itself and this link. `kem_key`: the initiator's 1,184 bytes, empty for the responder.

    `state_version`, `audit_head`: how far its audit chain is on disk; `boot_…`: how far it was at its start (SPEC 0.7).
    `clock_ms`: the sender's wall clock as it was made (SPEC 7.8), in Unix milliseconds.
    """

    suite: Annotated[str, msgspec.Meta(max_length=128)]
    roster_digest: Bytes32
    prss_epoch: Epoch
    sender: Index
    receiver: Index
    boot_nonce: Bytes32
    nonce: Bytes32
    x25519: Bytes32
    kem_key: Annotated[bytes, msgspec.Meta(max_length=KEM_KEY_BYTES)]
    frame_key: Bytes32
    state_version: Count
    audit_head: Bytes32
    boot_version: Count
    boot_head: Bytes32
    clock_ms: Count


class Open(Wire, frozen=True, tag=1):
    """First message, initiator to responder."""

    hello: Hello


class Answer(Wire, frozen=True, tag=2):
    """Second message, responder to initiator."""

    hello: Hello
    ciphertext: Annotated[bytes, msgspec.Meta(min_length=KEM_CIPHERTEXT_BYTES, max_length=KEM_CIPHERTEXT_BYTES)]
    signature: Signature64
    confirmation: Bytes32


class Finish(Wire, frozen=True, tag=3):
    """Third message, initiator to responder. `transcript` says which handshake it ends."""

    transcript: Bytes32
    signature: Signature64
    confirmation: Bytes32


HandshakeMessage = Open | Answer | Finish


class SessionProof(Wire, frozen=True):
    """What proves to a third party which frame key a signer used: its HSM's signature over a handshake (SPEC 0.12)."""

    initiator: Hello
    responder: Hello
    ciphertext: Annotated[bytes, msgspec.Meta(min_length=KEM_CIPHERTEXT_BYTES, max_length=KEM_CIPHERTEXT_BYTES)]
    signature: Signature64

    def verify(self, roster: Roster, index: int) -> Hello:
        """The hello of signer `index`. Raises `Unproven` unless its identity key in `roster` signed this handshake."""
        role, hello = (INITIATOR, self.initiator) if self.initiator.sender == index else (RESPONDER, self.responder)
        signed = signing_digest(role, _transcript(self.initiator, self.responder, self.ciphertext))
        if hello.sender != index or hello.suite != SUITE or hello.roster_digest != roster.digest():
            raise Unproven(f"no handshake of signer {index} under this roster")
        if not verify_identity(roster.signer(index).identity_point, signed, self.signature):
            raise Unproven(f"a handshake that the identity key of signer {index} did not sign")
        return hello


@dataclass(frozen=True)
class Identity:
    """What this enclave says of itself in every hello of this boot. `elapsed`: seconds, whatever clocks are set to."""

    roster: Roster
    me: int
    boot_nonce: bytes
    frame_key: bytes
    prss_epoch: Callable[[], int]
    chain: Callable[[], ChainEnd]
    boot_chain: Callable[[], ChainEnd]
    wall: Callable[[], float]
    elapsed: Callable[[], float]


@dataclass(frozen=True)
class PeerSession:
    """What a finished handshake proves of the peer's present boot. `clock_s`: what its clock said in its hello, less
    the time that had elapsed here when that came (SPEC 7.8)."""

    index: int
    boot_nonce: bytes
    frame_key: bytes
    prss_epoch: int
    chain: ChainEnd
    boot_chain: ChainEnd
    clock_s: float

    def digest(self) -> bytes:
        """SPEC 0.1: what stands for this session in every ceremony context."""
        return session_digest(self.index, self.boot_nonce, self.frame_key)


@dataclass(frozen=True)
class Link:
    """An established link. `key` (32 bytes) is secret. `proofs`: the peer's and our own of this handshake."""

    peer: PeerSession
    key: bytes = field(repr=False)
    proofs: tuple[SessionProof, ...] = field(repr=False)


def session_digest(index: int, boot_nonce: bytes, frame_key: bytes) -> bytes:
    """SPEC 0.1: `H(index, boot nonce, frame key)`."""
    return digest(Tag.SESSION, bytes([index]), boot_nonce, frame_key)


def signing_digest(role: bytes, transcript: bytes) -> bytes:
    """The 32 bytes that the HSM identity key signs for `role`."""
    return digest(Tag.HANDSHAKE_SIGNATURE, role, transcript)


class Initiator:
    """The lower index's side of one handshake attempt."""

    def __init__(self, identity: Identity, peer: int, random: Callable[[int], bytes]) -> None:
        self._identity, self._peer = identity, peer
        self._x25519 = X25519PrivateKey.generate()
        self._kem = MLKEM768PrivateKey.generate()
        self._made_s = identity.elapsed()
        self.hello = _hello(identity, peer, random(32), self._x25519, self._kem.public_key().public_bytes_raw())

    @property
    def age_s(self) -> float:
        """How long ago our hello was made."""
        return self._identity.elapsed() - self._made_s

    def accept(self, answer: Answer) -> tuple[Link, bytes]:
        """The link and the transcript to sign as initiator. Raises `LinkFault`."""
        # SPEC 7.8: so that the peer knows how old our clock is at most.
        if self.age_s > MAX_HELLO_AGE_S:
            raise LinkFault(self._peer, f"an answer that took {self.age_s:.0f} s")
        theirs = _check_hello(self._identity, self._peer, answer.hello, kem_key_bytes=0)
        transcript = _transcript(self.hello, answer.hello, answer.ciphertext)
        _check_signature(self._identity.roster, self._peer, RESPONDER, transcript, answer.signature)
        kem_secret = self._kem.decapsulate(answer.ciphertext)
        key = _link_key(self._peer, self._x25519, answer.hello.x25519, kem_secret, transcript)
        _check_confirmation(self._peer, key, RESPONDER, answer.confirmation)
        proof = SessionProof(self.hello, answer.hello, answer.ciphertext, answer.signature)
        return Link(theirs, key, (proof,)), transcript

    def signed(self, link: Link, signature: bytes) -> Link:
        """The link with our own proof, by the HSM's signature over `signing_digest(INITIATOR, transcript)`."""
        own = msgspec.structs.replace(link.proofs[0], signature=signature)
        return replace(link, proofs=(link.proofs[0], own))

    def finish(self, link: Link, transcript: bytes, signature: bytes) -> Finish:
        """The last message, with the HSM's signature over `signing_digest(INITIATOR, transcript)`."""
        return Finish(transcript, signature, _confirmation(link.key, INITIATOR))


class Responder:
    """The higher index's side of one handshake attempt. Raises `LinkFault` for a hello it does not accept."""

    def __init__(self, identity: Identity, peer: int, opening: Open, random: Callable[[int], bytes]) -> None:
        self._identity, self._peer, self.opening = identity, peer, opening
        theirs = _check_hello(identity, peer, opening.hello, kem_key_bytes=KEM_KEY_BYTES)
        x25519 = X25519PrivateKey.generate()
        self._hello = _hello(identity, peer, random(32), x25519, b"")
        try:
            kem_secret, self._ciphertext = MLKEM768PublicKey.from_public_bytes(opening.hello.kem_key).encapsulate()
        except ValueError:
            raise LinkFault(peer, "not an ML-KEM-768 encapsulation key") from None
        self.transcript = _transcript(opening.hello, self._hello, self._ciphertext)
        key = _link_key(peer, x25519, opening.hello.x25519, kem_secret, self.transcript)
        self._link = Link(theirs, key, ())

    def answer(self, signature: bytes) -> Answer:
        """The second message, with the HSM's signature over `signing_digest(RESPONDER, transcript)`."""
        own = SessionProof(self.opening.hello, self._hello, self._ciphertext, signature)
        self._link = replace(self._link, proofs=(own,))
        return Answer(self._hello, self._ciphertext, signature, _confirmation(self._link.key, RESPONDER))

    def accept(self, finish: Finish) -> Link:
        """The link, once the initiator has signed and confirmed. Raises `LinkFault`."""
        if finish.transcript != self.transcript:
            raise LinkFault(self._peer, "a finish of another handshake")
        _check_signature(self._identity.roster, self._peer, INITIATOR, self.transcript, finish.signature)
        _check_confirmation(self._peer, self._link.key, INITIATOR, finish.confirmation)
        if not self._link.proofs:
            raise LinkFault(self._peer, "a finish before our answer")
        (own,) = self._link.proofs
        return replace(self._link, proofs=(msgspec.structs.replace(own, signature=finish.signature), own))


def verify_identity(point: bytes, message_digest: bytes, signature: bytes) -> bool:
    """Whether `signature` (raw r‖s, 64 bytes) over a 32-byte digest is by the P-256 key `point` (65 bytes)."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        public.verify(utils.encode_dss_signature(r, s), message_digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except (ValueError, InvalidSignature):
        return False
    return True


def _hello(identity: Identity, peer: int, nonce: bytes, x25519: X25519PrivateKey, kem_key: bytes) -> Hello:
    chain, boot_chain = identity.chain(), identity.boot_chain()
    return Hello(
        suite=SUITE,
        roster_digest=identity.roster.digest(),
        prss_epoch=identity.prss_epoch(),
        sender=identity.me,
        receiver=peer,
        boot_nonce=identity.boot_nonce,
        nonce=nonce,
        x25519=x25519.public_key().public_bytes_raw(),
        kem_key=kem_key,
        frame_key=identity.frame_key,
        state_version=chain.version,
        audit_head=chain.head,
        boot_version=boot_chain.version,
        boot_head=boot_chain.head,
        clock_ms=max(0, int(identity.wall() * 1000)),
    )


def _check_hello(identity: Identity, peer: int, hello: Hello, kem_key_bytes: int) -> PeerSession:
    if hello.suite != SUITE:
        raise LinkFault(peer, f"suite {hello.suite!r} where ours is {SUITE!r}: update the older of the two")
    if hello.roster_digest != identity.roster.digest():
        ours, theirs = identity.roster.digest().hex()[:16], hello.roster_digest.hex()[:16]
        raise LinkFault(peer, f"pins another roster ({theirs}…) than ours ({ours}…)")
    if (hello.sender, hello.receiver) != (peer, identity.me):
        raise LinkFault(peer, f"a hello from {hello.sender} to {hello.receiver}")
    if len(hello.kem_key) != kem_key_bytes:
        raise LinkFault(peer, "a hello of the wrong role")
    return PeerSession(
        index=peer,
        boot_nonce=hello.boot_nonce,
        frame_key=hello.frame_key,
        prss_epoch=hello.prss_epoch,
        chain=ChainEnd(hello.state_version, hello.audit_head),
        boot_chain=ChainEnd(hello.boot_version, hello.boot_head),
        clock_s=hello.clock_ms / 1000 - identity.elapsed(),
    )


def _transcript(initiator: Hello, responder: Hello, ciphertext: bytes) -> bytes:
    return digest(Tag.HANDSHAKE, encode(initiator), encode(responder), ciphertext)


def _link_key(peer: int, mine: X25519PrivateKey, theirs: bytes, kem_secret: bytes, transcript: bytes) -> bytes:
    try:
        # Refuses an all-zero result (a point of small order).
        dh_secret = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise LinkFault(peer, "an X25519 key of small order") from None
    info = encode_parts(Tag.LINK_KEY, transcript)
    return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(dh_secret + kem_secret)


def _confirmation(key: bytes, role: bytes) -> bytes:
    return hmac.digest(key, encode_parts(Tag.KEY_CONFIRMATION, role), "sha256")


def _check_confirmation(peer: int, key: bytes, role: bytes, confirmation: bytes) -> None:
    if not hmac.compare_digest(_confirmation(key, role), confirmation):
        raise LinkFault(peer, "the key confirmation does not verify")


def _check_signature(roster: Roster, peer: int, role: bytes, transcript: bytes, signature: bytes) -> None:
    if not verify_identity(roster.signer(peer).identity_point, signing_digest(role, transcript), signature):
        raise LinkFault(peer, "the identity signature does not verify")
