"""A network of in-memory enclaves that has a key and presignatures, for attacks on signing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from enclave.wire import Acknowledgement, PresignatureName
from tests.fakes.clients import TestClient, TestGate, approved_policy, open_policy
from tests.fakes.enclaves import Clock, Net

COMMITTEE = (1, 2, 3)


@dataclass
class Desk:
    """A running network, its client and gate, one active key and a batch."""

    net: Net
    client: TestClient
    gate: TestGate
    key: Acknowledgement
    sid: bytes

    @property
    def key_id(self) -> str:
        """The active key's id."""
        return self.key.key_id

    def name(self, l: int = 1) -> PresignatureName:
        """A presignature of the batch."""
        return PresignatureName(self.sid, l)


def make_net(
    n: int = 3, t: int = 1, clock: Clock | None = None, approvers: tuple[TestClient, ...] = (), **options: object
) -> tuple[Net, TestClient, TestGate]:
    """A network before its setup. Where there are `approvers`, two of them must approve what is signed."""
    clock = clock or Clock()
    client, gate = TestClient(clock), TestGate(clock)
    policy = approved_policy(client, *approvers) if approvers else open_policy(client)
    net = Net(policy, gate, gate.keys, n, t, clock=clock, **options)  # type: ignore[arg-type]
    return net, client, gate


@pytest.fixture
def desk() -> Desk:
    net, client, gate = make_net()
    net.start()
    assert sorted(net.setup()) == [1, 2, 3]
    activated = net.keygen(client.create_key())
    assert sorted(activated) == [1, 2, 3]
    key = activated[1].certificates[0][0].acknowledgement
    done = net.presign(COMMITTEE, 8)
    assert sorted(done) == [1, 2, 3]
    net.drain()
    return Desk(net, client, gate, key, done[1].sid)
