"""The online step in one warm enclave that has the machine to itself, SoftHSM behind the HSM thread.

`python -m tests.bench.online` prints medians in microseconds: of the step, from the order's bytes to the share; of its
phases; and of the libraries' calls in it, each alone, which is what no code around them can go below.
"""

from __future__ import annotations

import hashlib
import os
import select
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nacl.bindings

from enclave import wire
from enclave.channels.frames import sign_digest, verify_digest
from enclave.crypto.curve import SECP256K1
from enclave.hsm import Hsm, HsmThread, RecordContext, open_hsm, provision
from enclave.tasks import Promise
from tests.adversarial.conftest import COMMITTEE, make_net
from tests.fakes.clients import TestClient
from tests.fakes.enclaves import COORDINATOR, Net, authorizations_of
from tests.fakes.softhsm import SoftToken

ROUNDS = 500
ME = 1
PHASE = "online_us|"


class Bench:
    """A network in memory whose first member has its key's record sealed by a real HSM."""

    def __init__(self, thread: HsmThread) -> None:
        self._thread = thread
        self.net, self.client = _network()
        self.key_id = self.net.keygen(self.client.create_key())[ME].certificates[0][0].acknowledgement.key_id
        self.sid = self.net.presign(COMMITTEE, ROUNDS)[ME].sid
        self.net.drain()
        self.member = self.net.members[ME]
        record = self.member.store["key", self.key_id]
        self.context = RecordContext("testnet", ME, "key", self.key_id, record.version // 2, record.version)
        plaintext = self.member.hsm.unseal(self.context, record.sealed).reveal()
        self.sealed = self._wait(lambda hsm: hsm.seal(self.context, plaintext))
        self.record = wire.Record("key", self.key_id, record.version, self.sealed)
        self.member.store["key", self.key_id] = self.record
        self.member.core.dispatch._around.vault._hsm = self._on_hsm

    def step_us(self, number: int) -> tuple[float, dict[str, int]]:
        """One online step, and its phases."""
        request = self.client.sign_hash(self.key_id, hashlib.sha256(b"%d" % number).digest(), (0, number % 4))
        ceremony = os.urandom(16)
        for j in COMMITTEE:
            name = wire.PresignatureName(self.sid, number)
            self.net.order(j, wire.SignOrder(ceremony, self.key_id, request, COMMITTEE, name))
        self.net.run()
        while not any(isinstance(report, wire.Authorized) for report in self.net.reports[ME]):
            self._await_hsm()
            self.net.run()
        order = wire.OnlineOrder(ceremony, self.key_id, authorizations_of(self.net.drain()))
        data = wire.encode(wire.Order(COORDINATOR, order, self.record))
        before = dict(self.member.core.status().counters)
        started_ns = time.perf_counter_ns()
        self.member.core.dispatch.handle(wire.decode(data, wire.ToEnclave))
        while not any(isinstance(report, wire.ShareReport) for report in self.net.reports[ME]):
            self._await_hsm()
        took_ns = time.perf_counter_ns() - started_ns
        self.net.drain()
        after = self.member.core.status().counters
        phases = {name: after[name] - before.get(name, 0) for name in after if name.startswith(PHASE)}
        return took_ns / 1000, phases

    def calls_us(self) -> dict[str, float]:
        """The libraries' calls, each alone and warm."""
        digest, point = os.urandom(32), SECP256K1.generate(1)
        frame_key, frame_secret = nacl.bindings.crypto_sign_keypair()
        signature = sign_digest(frame_secret, digest)
        return {
            "the HSM's unsealing": self._wait(
                lambda hsm: _median_us(lambda: hsm.unseal(self.context, self.sealed).wipe())
            ),
            "an authorization verified, of two": _median_us(lambda: verify_digest(frame_key, digest, signature)),
            "R' = delta R": _median_us(lambda: SECP256K1.multiply(point, int.from_bytes(digest, "big"))),
        }

    def _await_hsm(self) -> None:
        select.select([self._thread], [], [], 1)
        self._thread.drain()

    def _on_hsm(self, job: Callable[[Hsm], object]) -> Promise[object]:
        promise: Promise[object] = Promise()
        self._thread.submit(job, promise.settle)
        return promise

    def _wait(self, job: Callable[[Hsm], Any]) -> Any:
        promise = self._on_hsm(job)
        while not promise.done:
            self._await_hsm()
        return promise.result()


def _network() -> tuple[Net, TestClient]:
    net, client, _ = make_net()
    net.start()
    net.setup()
    return net, client


def _median_us(call: Callable[[], object]) -> float:
    times: list[int] = []
    for _ in range(ROUNDS):
        started_ns = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - started_ns)
    return statistics.median(times) / 1000


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as directory:
        token = SoftToken(Path(directory) / "hsm", "bench")
        os.environ["SOFTHSM2_CONF"] = str(token.create())
        provision(token.config)
        thread = HsmThread(lambda: open_hsm(token.config, "testnet", ME))
        thread.wait_ready(10)
        bench = Bench(thread)
        steps = [bench.step_us(number) for number in range(1, ROUNDS + 1)]
        print(f"{'the online step':36} {statistics.median(took for took, _ in steps):8.1f} µs")
        for phase in steps[0][1]:
            median = statistics.median(phases[phase] for _, phases in steps)
            print(f"  {phase.removeprefix(PHASE):34} {median:8.1f} µs")
        for call, median in bench.calls_us().items():
            print(f"{call:36} {median:8.1f} µs")
        thread.close()


if __name__ == "__main__":
    main()
