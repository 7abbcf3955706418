"""What a gate call costs a signer: one signer of a network without a gate, beside others that ask theirs.

All of them do the same work otherwise, under the same load, so what the others use more is the call: in the signer
process TLS, HTTP and the way to the enclave and back; in the enclave building and signing the question and verifying
the answer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import msgspec

from appliance import eventloop
from appliance.bench.load import POOL_BATCH, LoadResult, measure
from appliance.localnet import LocalNet
from policies.errors import Bug

WITHOUT, ASKING = 1, (2, 3)
POOL = (2_500, 10_000, POOL_BATCH)
SIGNED = "  mode: signed\n"


class GateResult(msgspec.Struct, frozen=True):
    """CPU (user and system) for each request, in ms: of a signer process and of an enclave without a gate, of those
    that ask (means), and the difference; and of the reference handler."""

    requests: int
    signatures_per_s: float
    signer_without_ms: float
    signer_asking_ms: float
    signer_call_ms: float
    enclave_without_ms: float
    enclave_asking_ms: float
    enclave_call_ms: float
    handler_ms: float


def run(clients: int, seconds: float, progress: Callable[[str], None]) -> GateResult:
    """Sign for so many `seconds`, `clients` requests at a time. Raises `KeymootError`."""
    progress("setting up 3 signers, two of them with gates")
    network = LocalNet(pool=POOL)
    try:
        network.write()
        _ask_nobody(network)
        network.start()
        network.wait_for_pool(POOL[1])
        with network.client() as client:
            key_id = client.create_key("bench/gate", "bench-key").id
        return _result(eventloop.run(measure(network, [key_id], clients, seconds, 0, progress)))
    finally:
        network.close()


def _ask_nobody(network: LocalNet) -> None:
    path = network.plan.signer(WITHOUT) / "enclave.yaml"
    text = path.read_text()
    if SIGNED not in text:
        raise Bug("the enclave's configuration does not say how its gate is asked")
    path.write_text(text.replace(SIGNED, "  mode: none\n"))


def _result(load: LoadResult) -> GateResult:
    used = load.cpu_ms_per_signature

    def of(kind: str) -> tuple[float, float, float]:
        without, asking = used[f"{kind}-{WITHOUT}"], statistics.mean(used[f"{kind}-{index}"] for index in ASKING)
        return round(without, 3), round(asking, 3), round(asking - without, 3)

    return GateResult(
        load.requests,
        load.signatures_per_s,
        *of("signer"),
        *of("enclave"),
        round(statistics.mean(used[f"gate-{index}"] for index in ASKING), 3),
    )
