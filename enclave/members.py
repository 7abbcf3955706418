"""What the members of a ceremony agree on before its first round: nonces, sessions, and the context (SPEC 0, 3.1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from enclave.channels.frames import sign_digest, verify_digest
from enclave.channels.handshake import PeerSession, session_digest
from enclave.errors import Refused
from enclave.wire import SignedNonce
from policies.transcript import Tag, digest

MAX_OPEN_NONCES = 64


@dataclass(frozen=True)
class OwnSession:
    """SPEC 0.1: this enclave's session of this boot. `frame_secret` (64 bytes) signs bodies."""

    index: int
    boot_nonce: bytes
    frame_key: bytes
    frame_secret: bytes

    def __repr__(self) -> str:
        return f"OwnSession(index={self.index}, …)"

    def digest(self) -> bytes:
        """What stands for this session in every ceremony context."""
        return session_digest(self.index, self.boot_nonce, self.frame_key)


class NonceBook:
    """SPEC 0.4: own nonces given out and not yet spent, by coordinator and purpose; beyond a bound the oldest is
    forgotten."""

    def __init__(self, session: OwnSession, random: Callable[[int], bytes]) -> None:
        self._session, self._random = session, random
        self._open: dict[tuple[str, str], OrderedDict[bytes, None]] = {}

    def issue(self, coordinator: str, purpose: str) -> SignedNonce:
        """A fresh signed nonce for one ceremony of `purpose` that this coordinator will order."""
        nonce = self._random(32)
        given = self._open.setdefault((coordinator, purpose), OrderedDict())
        given[nonce] = None
        if len(given) > MAX_OPEN_NONCES:
            given.popitem(last=False)
        me = self._session
        signature = sign_digest(me.frame_secret, _nonce_digest(me.index, purpose, me.boot_nonce, nonce))
        return SignedNonce(me.index, purpose, me.boot_nonce, nonce, signature)

    def spend(self, coordinator: str, nonce: SignedNonce, purpose: str) -> None:
        """Raises `Refused` unless this nonce was issued to this coordinator for `purpose` and never spent."""
        given = self._open.get((coordinator, purpose), OrderedDict())
        if nonce.boot_nonce != self._session.boot_nonce or nonce.nonce not in given:
            raise Refused("nonce", "not an unspent nonce of this enclave for this purpose")
        del given[nonce.nonce]


def ceremony_context(
    kind: str,
    roster_digest: bytes,
    parameters: Sequence[bytes],
    nonces: Sequence[SignedNonce],
    sessions: Mapping[int, bytes],
) -> bytes:
    """SPEC 0.2 (and 3.1 for `sid`): 32 bytes that hold everything the members must agree on.

    `nonces`: one a member, ascending; `sessions`: each member's session digest by index.
    """
    members = bytes(nonce.index for nonce in nonces)
    return digest(
        Tag.CEREMONY,
        kind.encode(),
        roster_digest,
        members,
        len(parameters).to_bytes(4, "big"),
        *parameters,
        *(sessions[nonce.index] for nonce in nonces),
        *(nonce.nonce for nonce in nonces),
    )


def verify_nonces(
    nonces: Sequence[SignedNonce],
    members: tuple[int, ...],
    purpose: str,
    me: int,
    peers: Mapping[int, PeerSession],
) -> None:
    """SPEC 0.4: one nonce a member, each signed in its present session. Raises `Refused`."""
    if tuple(nonce.index for nonce in nonces) != members:
        raise Refused("nonce", "one nonce for each member, in order")
    for nonce in nonces:
        if nonce.purpose != purpose:
            raise Refused("nonce", f"a nonce of signer {nonce.index} for another purpose")
        if nonce.index == me:
            continue
        peer = peers[nonce.index]
        signed = _nonce_digest(nonce.index, purpose, nonce.boot_nonce, nonce.nonce)
        if nonce.boot_nonce != peer.boot_nonce or not verify_digest(peer.frame_key, signed, nonce.signature):
            raise Refused("nonce", f"a nonce that signer {nonce.index} did not sign in its present session")


def _nonce_digest(index: int, purpose: str, boot_nonce: bytes, nonce: bytes) -> bytes:
    return digest(Tag.NONCE, bytes([index]), purpose.encode(), boot_nonce, nonce)
