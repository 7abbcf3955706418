"""Known answers of a seeded run: `python -m tests.vectors.generate` writes `vectors.json` anew.

Whatever changes here changes what enclaves of two releases say to each other: it needs a new protocol version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enclave.bodies import BROADCAST, BodyLog, SignedBody, body_digest
from enclave.channels import frames
from enclave.channels.handshake import SUITE, Hello, session_digest, signing_digest
from enclave.crypto import bip32, polynomials
from enclave.crypto.curve import SECP256K1, compress
from enclave.members import NonceBook, OwnSession, ceremony_context
from enclave.protocol import keygen, presign, setup, sign
from enclave.protocol.session import Session
from enclave.wire import (
    Authorization,
    AuthorizationTerms,
    PresignatureName,
    SignedAuthorization,
    encode,
)
from tests.fakes.identities import frame_keys
from tests.fakes.identities import roster as make_roster
from tests.fakes.network import results, seeded_random
from tests.fakes.rounds import Ceremony, keygen_ceremony, presign_ceremony, setup_ceremony

FILE = Path(__file__).with_name("vectors.json")
# n, t, committee; the last one has a `D` other than 1 (SPEC 3.8).
SCHEMES = {
    "n=3 t=1": (3, 1, (1, 2, 3)),
    "n=5 t=2": (5, 2, (1, 2, 3, 4, 5)),
    "n=5 t=1 by 1, 3, 5": (5, 1, (1, 3, 5)),
}
PATH, HASH = (0, 5), hashlib.sha256(b"known answer").digest()


def sha(*parts: bytes) -> str:
    """SHA-256 of the parts, each after its length."""
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()


def run(ceremony: Ceremony) -> tuple[dict[int, Any], str]:
    """All results, and the hash of every body in the order of delivery."""
    network = ceremony.network()
    return results(network.run(ceremony.start)), network.transcript.hexdigest()


def scheme(n: int, t: int, C: tuple[int, ...]) -> dict[str, Any]:
    """Setup, one ceremony of two keys, four presignatures, and a signature with the third of them."""
    keys: dict[int, tuple[keygen.NewKey, ...]] = {}
    seeds, setup_transcript = run(setup_ceremony(n, t))
    certificates, keygen_transcript = run(keygen_ceremony(n, t, kept=keys))
    batches, presign_transcript = run(presign_ceremony(n, t, 4, C))
    ack = certificates[1][0][0].acknowledgement
    child, epsilon = bip32.derive(ack.public_key, ack.chain_code, PATH)
    signatures = sign_with(C, seeds, {j: held[0].share for j, held in keys.items()}, batches, ack, epsilon)
    r = SECP256K1.x_mod_q(signatures[C[0]].R)
    s = polynomials.interpolate({j: share.s for j, share in signatures.items()}, SECP256K1.q)
    return {
        "setup": {
            "transcript": setup_transcript,
            "seeds": {str(j): sha(*(g.label() for g in held.groups), *held.seeds) for j, held in seeds.items()},
        },
        "keygen": {
            "transcript": keygen_transcript,
            "key_id": ack.key_id,
            "public_key": ack.public_key.hex(),
            "chain_code": ack.chain_code.hex(),
            "public_shares": [point.hex() for point in ack.public_shares],
            "acknowledgement_digest": ack.digest().hex(),
        },
        "presign": {
            "transcript": presign_transcript,
            "points": sha(batches[C[0]].points),
            "first_point": compress(batches[C[0]].points[:64]).hex(),
            "inverse_shares": {str(j): sha(batch.inverse_shares) for j, batch in batches.items()},
        },
        "sign": {
            "child_key": child.hex(),
            "epsilon": f"{epsilon:064x}",
            "shares": {str(j): f"{share.s:064x}" for j, share in signatures.items()},
            "R": signatures[C[0]].R.hex(),
            "r": f"{r:064x}",
            "s": f"{s:064x}",
        },
    }


def sign_with(
    C: tuple[int, ...],
    seeds: dict[int, setup.Seeds],
    shares: dict[int, int],
    batches: dict[int, presign.Batch],
    ack: Any,
    epsilon: int,
) -> dict[int, sign.SignatureShare]:
    """Every member's share of one signature over `HASH` by presignature 3."""
    terms = AuthorizationTerms(
        "KU25",
        "secp256k1",
        b"r" * 32,
        1,
        1,
        ack.key_id,
        ack.public_key,
        PATH,
        HASH,
        b"d" * 32,
        C,
        PresignatureName(batches[C[0]].sid, 3),
    )
    authorizations = [
        SignedAuthorization(Authorization(terms, j, bytes([j]) * 32, bytes([16 + j]) * 32, 2_000_000_000), bytes(64))
        for j in C
    ]
    out = {}
    for j in C:
        taken = sign.Presignature(int.from_bytes(batches[j].inverse_shares[64:96], "big"), batches[j].points[128:192])
        online = {i: seeds[j].of("online-pair", (min(i, j), max(i, j))) for i in C if i != j}
        out[j] = sign.online_share(SECP256K1, j, C, taken, authorizations, HASH, epsilon, shares[j], online)
    return out


def encodings() -> dict[str, str]:
    """What a session and a channel put on the wire, byte for byte."""
    context = b"C" * 32
    bodies: list[bytes] = []
    session = Session(context, 1, (1, 2, 3), presign.ROUNDS, lambda number, to, private, body: bodies.append(body))
    session.broadcast(presign.Products((b"a" * 32, b"b" * 32), b"w" * 64, b"m" * 64))
    for j in (2, 3):
        session.receive(j, 1, bodies[0])
    waiting = session.gather(presign.Products)
    finish(waiting.send)
    session.broadcast(presign.CheckProducts(b"t" * 64))
    public, secret = frame_keys(1)
    keys = frames.ceremony_keys(b"k" * 32, context, 1, 2, frame_keys(2)[0])
    channel = frames.CeremonyChannel(context, 1, secret, [keys], frozenset({2}), BodyLog(8))
    ((_, broadcast),) = channel.seal(1, (2,), False, b"broadcast")
    ((_, private),) = channel.seal(2, (2,), True, b"private")
    own = OwnSession(1, b"b" * 32, public, secret)
    nonces = [NonceBook(own, seeded_random("nonce")).issue("main", "presign")]
    hello = Hello(
        SUITE, b"r" * 32, 1, 1, 2, b"b" * 32, b"n" * 32, b"x" * 32, b"e" * 1184, public, 7, b"h" * 32, 5, b"o" * 32,
        1_800_000_000_000,
    )  # fmt: skip
    return {
        "first_body": bodies[0].hex(),
        "second_body": bodies[1].hex(),
        "broadcast_frame": broadcast.hex(),
        "private_frame": private.hex(),
        "send_key": keys.send_key.hex(),
        "receive_key": keys.receive_key.hex(),
        "broadcast_digest": body_digest(context, SignedBody(1, 1, BROADCAST, b"broadcast", b"").ref).hex(),
        "private_digest": body_digest(context, SignedBody(2, 1, 2, b"private", b"").ref).hex(),
        "signed_nonce": encode(nonces[0]).hex(),
        "session_digest": session_digest(1, b"b" * 32, public).hex(),
        "ceremony_context": ceremony_context("presign", b"r" * 32, [b"p", b""], nonces, {1: own.digest()}).hex(),
        "hello": sha(encode(hello)),
        "responder_signs": signing_digest(b"responder", b"T" * 32).hex(),
        "initiator_signs": signing_digest(b"initiator", b"T" * 32).hex(),
        "roster_digest": make_roster().digest().hex(),
        "fingerprint": make_roster().signer(1).fingerprint,
    }


def finish(step: Callable[[None], object]) -> None:
    """Run a coroutine that has nothing to wait for to its end."""
    try:
        step(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


def compute() -> dict[str, Any]:
    """All vectors."""
    return {"schemes": {name: scheme(*each) for name, each in SCHEMES.items()}, "encodings": encodings()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute(), indent=2) + "\n")
