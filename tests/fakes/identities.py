"""Identity keys, rosters and finished handshakes for tests of the channels."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.bindings import crypto_sign_seed_keypair

from enclave.audit import ChainEnd
from enclave.channels.handshake import INITIATOR, RESPONDER, Identity, Initiator, Link, Open, Responder, signing_digest
from policies.roster import Roster, RosterSigner
from tests.fakes.network import seeded_random

CLOCK_S = 1_800_000_000.0

IDENTITY_KEYS = {j: ec.derive_private_key(1000 + j, ec.SECP256R1()) for j in (1, 2, 3, 4)}


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """65 bytes uncompressed."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def sign_as(index: int, message_digest: bytes) -> bytes:
    """Raw r‖s by the identity key of `index` over a 32-byte digest."""
    der = IDENTITY_KEYS[index].sign(message_digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    r, s = utils.decode_dss_signature(der)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def roster(network: str = "test", keys: tuple[int, ...] = (1, 2, 3)) -> Roster:
    """Signers 1, 2, … with the identity keys of `keys`."""
    signers = tuple(
        RosterSigner(index, f"signer-{index}", "org", base64.b64encode(point(IDENTITY_KEYS[key])).decode())
        for index, key in enumerate(keys, 1)
    )
    return Roster(1, network, 1, signers)


def frame_keys(index: int, boot: int = 0) -> tuple[bytes, bytes]:
    """Frame key (32 bytes) and its secret (64 bytes) of a boot."""
    public, secret = crypto_sign_seed_keypair(seeded_random(f"frame/{index}/{boot}")(32))
    return public, secret


def identity(
    index: int,
    boot: int = 0,
    of: Roster | None = None,
    epoch: int = 1,
    wall: Callable[[], float] = lambda: CLOCK_S,
    elapsed: Callable[[], float] = lambda: 100.0,
) -> Identity:
    """What signer `index` says of itself in one boot. Its clocks stand still unless they are given."""
    return Identity(
        roster=of or roster(),
        me=index,
        boot_nonce=seeded_random(f"boot/{index}/{boot}")(32),
        frame_key=frame_keys(index, boot)[0],
        prss_epoch=lambda: epoch,
        chain=lambda: ChainEnd(7, b"h" * 32),
        boot_chain=lambda: ChainEnd(7, b"h" * 32),
        wall=wall,
        elapsed=elapsed,
    )


@dataclass
class Ends:
    """Both ends of a handshake, with the messages as they were."""

    initiator: Initiator
    responder: Responder
    initiators_link: Link
    responders_link: Link


def handshake(i: Identity, j: Identity, random: Callable[[int], bytes] | None = None) -> Ends:
    """An honest handshake, `i` being the lower index."""
    draw = random or seeded_random("handshake")
    initiator = Initiator(i, j.me, draw)
    responder = Responder(j, i.me, Open(initiator.hello), draw)
    answer = responder.answer(sign_as(j.me, signing_digest(RESPONDER, responder.transcript)))
    link, transcript = initiator.accept(answer)
    finish = initiator.finish(link, transcript, sign_as(i.me, signing_digest(INITIATOR, transcript)))
    return Ends(initiator, responder, link, responder.accept(finish))
