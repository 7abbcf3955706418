"""Frames of one ceremony: keys and counters per (link, ceremony, direction), signed bodies inside.

    frame  = header ‖ ChaCha20-Poly1305(key, nonce = counter, plaintext, header)
    header = version ‖ ceremony context ‖ round ‖ from ‖ to ‖ counter
    plaintext = Ed25519 signature ‖ content

The signature covers (version, context, round, from, receiver or nothing, hash of content): the same bytes for every
receiver of a broadcast, so two different ones convict their sender before anybody.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from enclave.bodies import BODY_VERSION, BROADCAST, BodyLog, BodyRef, body_digest
from enclave.crypto import ed25519
from enclave.crypto.ed25519 import SIGNATURE_BYTES
from enclave.errors import LinkFault
from enclave.wire import Bytes32, Wire
from policies.roster import Index
from policies.transcript import Tag, digest, encode_parts

VERSION = BODY_VERSION
HANDSHAKE_FRAME, CEREMONY_FRAME = b"\x01", b"\x02"
_HEADER = struct.Struct(">cB32sBBBQ")
HEADER_BYTES = _HEADER.size
SIGNED_NONCE_BYTES = 32


class PeerKeys(Wire, frozen=True):
    """What one ceremony needs of one link: two direction keys (secret) and the peer's frame key (public)."""

    peer: Index
    send_key: Bytes32
    receive_key: Bytes32
    frame_key: Bytes32

    def __repr__(self) -> str:
        return f"PeerKeys(peer={self.peer}, …)"


def ceremony_keys(link_key: bytes, context: bytes, me: int, peer: int, frame_key: bytes) -> PeerKeys:
    """Derive both directions' keys for a ceremony from its link's key."""

    def key(sender: int, receiver: int) -> bytes:
        info = encode_parts(Tag.CEREMONY_KEY, context, bytes([sender]), bytes([receiver]))
        return HKDFExpand(hashes.SHA256(), 32, info).derive(link_key)

    return PeerKeys(peer, key(me, peer), key(peer, me), frame_key)


def frame_context(frame: bytes) -> bytes:
    """The ceremony context a ceremony frame claims, unverified: where to route it. Raises `LinkFault`."""
    if len(frame) < HEADER_BYTES + SIGNATURE_BYTES:
        raise LinkFault(0, "a frame shorter than its header")
    return frame[2:34]


def sign_digest(frame_secret: bytes, message_digest: bytes) -> bytes:
    """64-byte Ed25519 signature by a 64-byte libsodium secret key."""
    return ed25519.sign(frame_secret, message_digest)


def verify_digest(frame_key: bytes, message_digest: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature over a digest verifies under a 32-byte frame key."""
    return ed25519.verifies(frame_key, message_digest, signature)


def verify_ref(frame_key: bytes, context: bytes, ref: BodyRef) -> bool:
    """Whether the body behind `ref` was signed for this context under `frame_key`."""
    return verify_digest(frame_key, body_digest(context, ref), ref.signature)


class CeremonyChannel:
    """One member's frames of one ceremony. `private_rounds`: numbers of the rounds whose bodies name a receiver.

    `log` gets every body that verified and every broadcast body of our own (SPEC 3.10).
    """

    def __init__(
        self,
        context: bytes,
        me: int,
        frame_secret: bytes,
        peers: Sequence[PeerKeys],
        private_rounds: frozenset[int],
        log: BodyLog,
    ) -> None:
        self.context, self.me, self._log = context, me, log
        self._frame_secret = frame_secret
        self._private_rounds = private_rounds
        self._peers = {keys.peer: keys for keys in peers}
        self._send = {keys.peer: ChaCha20Poly1305(keys.send_key) for keys in peers}
        self._receive = {keys.peer: ChaCha20Poly1305(keys.receive_key) for keys in peers}
        self._sent = dict.fromkeys(self._peers, 0)
        self._received = dict.fromkeys(self._peers, 0)

    def seal(
        self, round_number: int, receivers: tuple[int, ...], private: bool, content: bytes
    ) -> list[tuple[int, bytes]]:
        """Frames of one body, one for each receiver, signed once."""
        receiver = receivers[0] if private else BROADCAST
        unsigned = BodyRef(round_number, self.me, receiver, digest(Tag.CONTENT, content), b"")
        signature = sign_digest(self._frame_secret, body_digest(self.context, unsigned))
        if not private:
            self._log.add(msgspec.structs.replace(unsigned, signature=signature), content)
        plaintext = signature + content
        return [(j, self._seal_one(round_number, j, plaintext)) for j in receivers]

    def open(self, sender: int, frame: bytes) -> tuple[int, bytes]:
        """Round number and content of a frame that `sender` wrote for this ceremony and for us.

        Raises `LinkFault` for anything else: until decryption *and* signature verify, a fault is the link's.
        """
        if sender not in self._peers:
            raise LinkFault(sender, "not a member of this ceremony")
        if len(frame) < HEADER_BYTES + SIGNATURE_BYTES:
            raise LinkFault(sender, "a frame shorter than its header")
        header = frame[:HEADER_BYTES]
        kind, version, context, round_number, claimed, receiver, counter = _HEADER.unpack(header)
        if (kind, version, context) != (CEREMONY_FRAME, VERSION, self.context):
            raise LinkFault(sender, "a frame of another ceremony or version")
        if (claimed, receiver) != (sender, self.me):
            raise LinkFault(sender, f"a frame from {claimed} to {receiver}")
        if counter != self._received[sender]:
            raise LinkFault(sender, f"frame {counter} where {self._received[sender]} was due")
        try:
            plaintext = self._receive[sender].decrypt(_nonce(counter), frame[HEADER_BYTES:], header)
        except InvalidTag:
            raise LinkFault(sender, "a frame does not decrypt") from None
        signature, content = plaintext[:SIGNATURE_BYTES], plaintext[SIGNATURE_BYTES:]
        named = self.me if round_number in self._private_rounds else BROADCAST
        ref = BodyRef(round_number, sender, named, digest(Tag.CONTENT, content), signature)
        if not verify_ref(self._peers[sender].frame_key, self.context, ref):
            raise LinkFault(sender, "a body's signature does not verify")
        self._received[sender] += 1
        self._log.add(ref, content)
        return round_number, content

    def _seal_one(self, round_number: int, receiver: int, plaintext: bytes) -> bytes:
        counter = self._sent[receiver]
        self._sent[receiver] = counter + 1
        header = _HEADER.pack(CEREMONY_FRAME, VERSION, self.context, round_number, self.me, receiver, counter)
        return header + self._send[receiver].encrypt(_nonce(counter), plaintext, header)


def _nonce(counter: int) -> bytes:
    return counter.to_bytes(12, "big")
