"""Where the CPU time of a batch goes: one member's computation, step by step, for `keymoot bench presign`.

All members are computed here, with seeds that serve nothing else; only the first one's time counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from enclave.crypto import prss
from enclave.crypto.curve import SECP256K1
from enclave.protocol import presign
from enclave.protocol.presign_material import SubSeeds, expand

T = TypeVar("T")


class Watch:
    """Seconds of CPU by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def each(self, step: str, members: tuple[int, ...], compute: Callable[[int], T]) -> dict[int, T]:
        """What every member computes in a step. The first one's time counts."""
        first = self.one(step, lambda: compute(members[0]))
        return {members[0]: first} | {j: compute(j) for j in members[1:]}

    def one(self, step: str, compute: Callable[[], T]) -> T:
        """What is computed from public values alone, the same for all."""
        started_s = time.process_time()
        result = compute()
        self.seconds[step] = self.seconds.get(step, 0.0) + time.process_time() - started_s
        return result


def profile(t: int, m: int) -> dict[str, float]:
    """Microseconds for each presignature, by step of the specification, of a batch of `m` by `2t+1` members."""
    C, q, curve, watch = tuple(range(1, 2 * t + 2)), SECP256K1.q, SECP256K1, Watch()
    seeds = {group: os.urandom(32) for group in (*prss.subsets(C, t), *prss.pairs(C))}
    sub_seeds = {
        j: SubSeeds(
            {A: seeds[A] for A in prss.subsets(C, t) if j in A},
            {pair: seeds[pair] for pair in prss.pairs(C) if j in pair},
        )
        for j in C
    }
    own = watch.each("3.2 random values", C, lambda j: expand(C, t, j, m, sub_seeds[j]))
    products = watch.each("3.3 products", C, lambda j: presign.compute_products(own[j], sub_seeds[j], q))
    shares = watch.each("3.3 shares of w, mu", C, lambda j: presign.compute_first_shares(C, m, own[j], products, q))
    checks = watch.each("3.4 products", C, lambda j: presign.compute_check_products(own[j], shares[j][1], q))
    tau = watch.each("3.4 shares of tau", C, lambda j: presign.compute_check_shares(C, m, own[j], checks, q))
    challenges = {j: presign.compute_challenges(own[j]) for j in C}
    rho, beta = presign.verify_challenges(t, challenges, q)
    openings = watch.each(
        "3.6 T and R", C, lambda j: presign.compute_openings(curve, own[j], tau[j], shares[j][0], rho, beta)
    )
    w = watch.one("3.7 check of w", lambda: presign.verify_products(C, t, m, openings, q))
    points = watch.one("3.7 check of R", lambda: presign.verify_points(curve, C, t, m, openings))
    watch.one("3.8 inverses", lambda: presign.compute_inverse_shares(C, t, own[C[0]], w, q))
    watch.one("3.9 agreement", lambda: presign.compute_agreement(bytes(32), m, rho, beta, w, points))
    return {step: round(seconds * 1e6 / m, 2) for step, seconds in watch.seconds.items()}


def main(arguments: list[str]) -> None:
    """Print the profile as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m enclave.presign_profile", description=__doc__)
    parser.add_argument("--tolerate", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args(arguments)
    profile(options.tolerate, 1)
    sys.stdout.write(msgspec.json.encode(profile(options.tolerate, options.batch)).decode() + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
