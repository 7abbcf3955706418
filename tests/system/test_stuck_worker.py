"""A signer whose presign worker hangs: it answers everything else, and every batch with it waits in vain."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

import pytest

from appliance.api.models import SignatureState
from appliance.localnet import LocalNet
from policies.requests import Hash

POOL = (20, 40, 20)
STUCK = 2
WAIT_S = 200.0


def worker_of(enclave: int) -> int:
    (child,) = Path(f"/proc/{enclave}/task/{enclave}/children").read_text().split()
    return int(child)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_others_fill_their_pools_and_sign_without_it() -> None:
    """After the 60 s that a batch may take, once."""
    with LocalNet(5, 1, gate=False, pool=POOL) as net:
        net.wait_for_pool(POOL[0])
        with net.client() as client:
            key = client.create_key("pools/stuck", "stuck-key")

            def sign() -> SignatureState:
                return client.sign(key.id, Hash("0x" + secrets.token_hex(32), secrets.token_hex(8))).status

            worker = worker_of(net.processes[f"enclave-{STUCK}"].pid)
            os.kill(worker, signal.SIGSTOP)
            try:
                # What is there is used up, and more than that.
                for _ in range(sum(net.pools().values())):
                    if min(net.pools().values()) < POOL[0]:
                        break
                    assert sign() is SignatureState.SIGNED
                left_out = "unfinished-batch"
                log = net.log("coordinator")
                net.wait_for(lambda: left_out in log.read_text(), "the stuck signer to be left out", WAIT_S)
                others = {committee for committee in net.pools() if STUCK not in committee}
                net.wait_for(
                    lambda: all(net.pools().get(committee, 0) >= POOL[0] for committee in others),
                    "the others to fill their pools",
                    WAIT_S,
                )
                for _ in range(3 * POOL[1]):
                    assert sign() is SignatureState.SIGNED
            finally:
                os.kill(worker, signal.SIGCONT)
            net.wait_for(
                lambda: any(STUCK in committee and count >= POOL[0] for committee, count in net.pools().items()),
                "it to be taken in again",
                WAIT_S,
            )
