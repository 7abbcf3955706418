"""Key generation whose last round is lost or hidden, in any pattern: nobody is left without a share of an active key.

A key is active where all `n` acknowledgements are; the shares were stored before the first of them was sent (SPEC 2.6),
and whoever has the certificate can give it to the others (SPEC 2.7).
"""

from __future__ import annotations

import itertools
import random

import pytest

from enclave import wire
from enclave.protocol import keygen
from enclave.shares import KeyRecord
from tests.adversarial.conftest import make_net
from tests.fakes.enclaves import Net

CEREMONY_FRAME = 2
LAST_ROUND = len(keygen.ROUNDS)


class Run:
    """One key generation in which some frames of its last round are lost: those in `hidden`, as (sender, receiver)."""

    def __init__(self, n: int, t: int, hidden: set[tuple[int, int]]) -> None:
        self.net, client, _ = make_net(n, t)
        self.net.start()
        self.net.setup()
        members = self.net.roster.indices
        nonces = self.net.nonces(members, "keygen")
        request = client.create_key(n=n, t=t)
        lost: set[tuple[int, int]] = set()

        def relay(sender: int, receiver: int, data: bytes) -> list[tuple[int, int, bytes]]:
            # kind, version, context of 32 bytes, round
            if data[0] == CEREMONY_FRAME and data[34] == LAST_ROUND and (sender, receiver) in hidden:
                lost.add((sender, receiver))
                return []
            return [(sender, receiver, data)]

        self.net.relay = relay
        for j in members:
            self.net.order(j, wire.KeygenOrder(b"keygen-ceremony-", (request,), nonces))
        self.net.run()
        self.net.advance(61)
        assert lost == hidden
        reports = self.net.drain()
        self.acknowledgements = tuple(
            report.acknowledgements[0]
            for j in members
            for report in reports[j]
            if isinstance(report, wire.KeysAcknowledged)
        )
        self.active = {j for j in members if any(isinstance(report, wire.KeysActivated) for report in reports[j])}

    def check(self) -> None:
        """Who heard of all is active, the others are pending, and the relayed certificate makes them active."""
        net = self.net
        members = net.roster.indices
        key_id = self.acknowledgements[0].acknowledgement.key_id
        assert len(self.acknowledgements) == len(members)
        assert {j: opened(net, j, key_id).active for j in members} == {j: j in self.active for j in members}
        for j in set(members) - self.active:
            # Anything less than all of them activates nothing.
            short = (*self.acknowledgements[:-1], self.acknowledgements[0])
            net.order(j, wire.ActivateOrder(b"activation------", key_id, short))
            net.run()
            assert [type(report) for report in net.drain()[j]] == [wire.OrderRefused]
            assert not opened(net, j, key_id).active
            # A restart in between forgets nothing.
            net.reboot(j)
            net.presence(members)
            net.run()
            net.drain()
            net.order(j, wire.ActivateOrder(b"activation------", key_id, self.acknowledgements))
            net.run()
            assert [type(report) for report in net.drain()[j]] == [wire.KeysActivated]
        shares = {j: opened(net, j, key_id) for j in members}
        assert all(record.active for record in shares.values())
        assert len({record.share for record in shares.values()}) == len(members)


def opened(net: Net, j: int, key_id: str) -> KeyRecord:
    """What the store of signer `j` holds of the key."""
    found: list[KeyRecord] = []
    core, record = net.members[j].core, net.members[j].store["key", key_id]

    async def look() -> None:
        found.append(await core.orders._around.vault.open_key(record, key_id))

    try:
        look().send(None)
    except StopIteration:
        return found[0]
    raise AssertionError("the HSM is away")


PAIRS = list(itertools.permutations((1, 2, 3), 2))


@pytest.mark.parametrize("pattern", range(2 ** len(PAIRS)))
def test_every_pattern_of_three(pattern: int) -> None:
    hidden = {pair for place, pair in enumerate(PAIRS) if pattern >> place & 1}
    run = Run(3, 1, hidden)
    assert run.active == {j for j in (1, 2, 3) if not any(receiver == j for _, receiver in hidden)}
    run.check()


@pytest.mark.parametrize("seed", range(12))
def test_patterns_of_five_by_two_cheaters(seed: int) -> None:
    """Signers 4 and 5 show their acknowledgements to whom they like: the key is active for those alone, until somebody
    who has them all relays them."""
    rng = random.Random(seed)
    pairs = [(sender, receiver) for sender in (4, 5) for receiver in range(1, 6) if sender != receiver]
    hidden = set(rng.sample(pairs, rng.randint(1, len(pairs))))
    run = Run(5, 2, hidden)
    assert run.active == {j for j in range(1, 6) if not any(receiver == j for _, receiver in hidden)}
    run.check()
