"""Every protocol, run honestly in memory for all schemes: the signature verifies in independent software."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import combinations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from enclave.crypto import bip32, polynomials, prss
from enclave.crypto.curve import SECP256K1
from enclave.protocol import keygen, presign, setup, sign
from enclave.protocol.presign_material import SubSeeds, derive_sub_seed
from enclave.wire import (
    Authorization,
    AuthorizationTerms,
    PresignatureName,
    SignedAcknowledgement,
)
from tests.fakes.network import Network, results, seeded_random

Q = SECP256K1.q
SCHEMES = [(1, 3), (2, 5), (3, 7), (1, 5)]


def run_setup(n: int, t: int, seed: str = "setup") -> tuple[dict[int, setup.Seeds], str]:
    network = Network(tuple(range(1, n + 1)), b"S" * 32, setup.ROUNDS)

    async def install(seeds: setup.Seeds) -> None:
        assert seeds.epoch == 1

    outcomes = network.run(lambda s: setup.setup(s, t, 1, b"r" * 32, seeded_random(f"{seed}/{s.me}"), install))
    return results(outcomes), network.transcript.hexdigest()


def run_keygen(n: int, t: int, labels: tuple[str, ...]) -> tuple[dict[int, Sequence[keygen.NewKey]], str]:
    network = Network(tuple(range(1, n + 1)), b"K" * 32, keygen.ROUNDS)
    plan = keygen.KeyPlan("test", b"r" * 32, t, 1, labels)
    kept: dict[int, Sequence[keygen.NewKey]] = {}

    def start(session):
        async def store_pending(keys):
            kept[session.me] = keys
            return tuple(SignedAcknowledgement(key.acknowledgement, bytes(64)) for key in keys)

        random = seeded_random(f"keygen/{session.me}")
        return keygen.keygen(session, SECP256K1, plan, random, store_pending, lambda signed: True)

    certificates = results(network.run(start))
    assert len({tuple(map(repr, c)) for c in certificates.values()}) == 1
    return kept, network.transcript.hexdigest()


def sub_seeds(seeds: setup.Seeds, C: tuple[int, ...], t: int, me: int, sid: bytes) -> SubSeeds:
    return SubSeeds(
        {A: derive_sub_seed(seeds.of("subset", A), sid) for A in prss.subsets(C, t) if me in A},
        {p: derive_sub_seed(seeds.of("presign-pair", p), sid) for p in prss.pairs(C) if me in p},
    )


def run_presign(seeds: dict[int, setup.Seeds], C: tuple[int, ...], t: int, m: int):
    sid = hashlib.sha256(repr((C, t, m)).encode()).digest()
    network = Network(C, sid, presign.ROUNDS)
    outcomes = network.run(lambda s: presign.presign(s, SECP256K1, t, m, sub_seeds(seeds[s.me], C, t, s.me, sid)))
    return results(outcomes), network.transcript.hexdigest()


def sign_once(keys, seeds, batches, C, t, l, path, h) -> None:
    ack = keys[C[0]][0].acknowledgement
    child, epsilon = bip32.derive(ack.public_key, ack.chain_code, path)
    terms = AuthorizationTerms(
        "KU25", "secp256k1", b"r" * 32, 1, 1, ack.key_id, ack.public_key, path, h, b"d" * 32, C,
        PresignatureName(batches[C[0]].sid, l),
    )  # fmt: skip
    authorizations = [Authorization(terms, j, b"b" * 32, os.urandom(32), 10) for j in C]
    shares = {}
    for j in C:
        batch = batches[j]
        taken = sign.Presignature(
            int.from_bytes(batch.inverse_shares[32 * (l - 1) : 32 * l], "big"),
            batch.points[64 * (l - 1) : 64 * l],
        )
        online = {i: seeds[j].of("online-pair", tuple(sorted((i, j)))) for i in C if i != j}
        shares[j] = sign.online_share(SECP256K1, j, C, taken, authorizations, h, epsilon, keys[j][0].share, online)
    assert len({share.R for share in shares.values()}) == 1
    r = SECP256K1.x_mod_q(shares[C[0]].R)
    s = polynomials.interpolate({j: share.s for j, share in shares.items()}, Q)
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), child)
    public.verify(utils.encode_dss_signature(r, s), h, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


@pytest.mark.parametrize(("t", "n"), SCHEMES)
def test_key_presignatures_and_signature_for_every_committee(t: int, n: int) -> None:
    seeds, _ = run_setup(n, t)
    keys, _ = run_keygen(n, t, ("hot/1",))
    for C in combinations(range(1, n + 1), 2 * t + 1):
        batches, _ = run_presign(seeds, C, t, 3)
        assert len({batch.points for batch in batches.values()}) == 1
        for l in (1, 3):
            sign_once(keys, seeds, batches, C, t, l, (0, 5), hashlib.sha256(bytes([l])).digest())


@pytest.mark.parametrize(("t", "n"), SCHEMES)
def test_any_t_plus_one_shares_determine_the_key_and_t_do_not(t: int, n: int) -> None:
    keys, _ = run_keygen(n, t, ("a", "b"))
    for number in range(2):
        ack = keys[1][number].acknowledgement
        for group in combinations(range(1, n + 1), t + 1):
            x = polynomials.interpolate({j: keys[j][number].share for j in group}, Q)
            assert SECP256K1.generate(x) == ack.public_key
        x = polynomials.interpolate({j: keys[j][number].share for j in range(1, t + 1)}, Q)
        assert SECP256K1.generate(x) != ack.public_key
        assert [SECP256K1.generate(keys[j][number].share) for j in sorted(keys)] == list(ack.public_shares)


def test_seeds_are_shared_by_their_groups_alone() -> None:
    seeds, _ = run_setup(5, 2)
    for j, held in seeds.items():
        assert all(j in group.members for group in held.groups)
        for group, seed in zip(held.groups, held.seeds, strict=True):
            assert all(seeds[i].of(group.purpose, group.members) == seed for i in group.members)
    every = {seed for held in seeds.values() for seed in held.seeds}
    assert len(every) == 10 + 2 * 10
