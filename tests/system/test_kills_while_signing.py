"""Real processes, killed while they sign: no presignature serves twice, and what left is in every audit chain.

Kill -9 comes between any two effects: taken and not sent, recorded and not sent, sent and not answered. What is held at
the end is read from the signers' stores: of every presignature at most one share of each signer, and for every
signature that a client got a record at all of them.
"""

from __future__ import annotations

import json
import random
import secrets
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from appliance.api.client import ApiError, CertifiedKey, Failed, Rejected
from appliance.cli import demo_inputs as inputs
from appliance.localnet import LocalNet
from enclave.audit import entry_hash
from policies.errors import Unavailable
from policies.requests import Hash

VICTIMS = ("enclave-1", "enclave-2", "enclave-3", "signer-1", "signer-2", "signer-3", "coordinator")
CLIENTS = 4
POOL = (40, 80, 40)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def net() -> Iterator[LocalNet]:
    with LocalNet(pool=POOL) as made:
        made.wait_for_pool(POOL[0])
        yield made


class Clients:
    """Threads that ask for signatures over fresh hashes, one after the other, whatever becomes of them."""

    def __init__(self, net: LocalNet, key: CertifiedKey) -> None:
        self._net, self._key = net, key
        self._stop = threading.Event()
        self.signed: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _ask(self) -> None:
        while not self._stop.is_set():
            digest = secrets.token_hex(32)
            try:
                with self._net.client() as client:
                    signed = client.sign(self._key.id, Hash("0x" + digest, secrets.token_hex(8)), timeout_s=10.0)
            except (Failed, Rejected, ApiError, Unavailable) as error:
                self.outcomes[type(error).__name__] += 1
                continue
            if signed.signature is not None:
                assert inputs.libsecp256k1_verifies(self._key.public_key(), signed.signature)
                self.signed.append(digest)


def shares(net: LocalNet, index: int) -> list[tuple[str, str]]:
    """Presignature and hash of every share in the audit chain of a signer, whose hashes are checked on the way."""
    with sqlite3.connect(f"file:{net.plan.signer(index)}/state/signer.db?mode=ro", uri=True) as connection:
        rows = connection.execute("select seq, body, hash from audit order by seq").fetchall()
    head, found = bytes(32), []
    authorized: set[tuple[str, str]] = set()
    for number, (seq, body, told) in enumerate(rows, 1):
        head = entry_hash(head, seq, body)
        assert (seq, told) == (number, head)
        fact = json.loads(body)
        if fact["event"] == "authorized":
            authorized.add((fact["request"], fact["hash"]))
        elif fact["event"] == "share":
            assert (fact["request"], fact["hash"]) in authorized, "a share without its decision before it"
            found.append((fact["presignature"], fact["hash"]))
    return found


def kill_while_signing(net: LocalNet, kills: int, rng: random.Random) -> Clients:
    with net.client() as client:
        key = client.create_key("test/kills", "kills-key")
    with Clients(net, key) as clients:
        for number in range(kills):
            done = len(clients.signed)
            net.wait_for(lambda done=done: len(clients.signed) > done + 3, "signatures between the kills", 120)
            victims = [VICTIMS[number % len(VICTIMS)]] if number % 3 else rng.sample(VICTIMS, 2)
            for victim in victims:
                net.kill(victim, signal.SIGKILL)
            for victim in victims:
                net.processes[victim].start()
            for victim in victims:
                net.wait_ready(victim)
        done = len(clients.signed)
        net.wait_for(lambda: len(clients.signed) > done + 3, "signatures after the last kill", 120)
    return clients


def check(net: LocalNet, clients: Clients) -> None:
    of_all = {index: shares(net, index) for index in net.plan.indices}
    for index, found in of_all.items():
        twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
        assert twice == [], f"signer {index} used these twice"
        missing = set(clients.signed) - {digest for _, digest in found}
        assert missing == set(), f"signer {index} has no record of shares that left it"
    # No presignature completed two messages.
    complete = set.intersection(*(set(found) for found in of_all.values()))
    assert len({name for name, _ in complete}) == len(complete)
    assert len(clients.signed) == len(set(clients.signed)) > 20


def test_kills_at_any_moment_reuse_nothing(net: LocalNet) -> None:
    check(net, kill_while_signing(net, 5, random.Random(1)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills_at_any_moment_reuse_nothing(net: LocalNet) -> None:
    check(net, kill_while_signing(net, 100, random.Random(2)))
