"""The three ceremonies as things to attack: how to run one with a cheater, and what all results must agree on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec

from enclave.crypto import prss
from enclave.crypto.curve import SECP256K1
from enclave.errors import PeerFault
from enclave.protocol import keygen, presign, setup
from enclave.protocol.presign_material import SubSeeds, derive_sub_seed
from enclave.protocol.session import RoundMessage, Session
from enclave.wire import SignedAcknowledgement
from policies.transcript import DIGEST_BYTES
from tests.fakes.network import Network, Tamper, results, seeded_random

ROSTER_DIGEST = b"r" * 32
Alter = Callable[[RoundMessage, int | None], RoundMessage]
Seen = tuple[str, tuple[int, ...], tuple[int, ...]] | str | None


class CheatingSession(Session):
    """A cheater consistent with its lie: what it alters, it also holds and hashes itself.

    `alter(message, receiver)`: what is sent in place of `message`; the receiver is None for a broadcast.
    """

    alter: Alter

    def broadcast(self, message: RoundMessage) -> None:
        super().broadcast(self.alter(message, None))

    def send(self, messages: Mapping[int, RoundMessage]) -> None:
        super().send({j: self.alter(message, j) for j, message in messages.items()})


@dataclass(frozen=True)
class Ceremony:
    """One protocol with its parameters. `start` runs a member; `agree` asserts that results belong together."""

    name: str
    members: tuple[int, ...]
    t: int
    context: bytes
    rounds: tuple[type[RoundMessage], ...]
    start: Callable[[Session], Coroutine[Any, None, Any]]
    agree: Callable[[dict[int, Any]], None]
    network: Callable[[], Network] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", lambda: Network(self.members, self.context, self.rounds))

    def run(
        self,
        cheater: int = 0,
        alter: Alter | None = None,
        tamper: Tamper | None = None,
        cheaters: tuple[int, ...] = (),
    ) -> dict[int, Any]:
        """Outcome of every member. `alter`: a consistent cheater; `tamper`: on the way, also to one receiver.

        Asserts of every run that honest results agree, and that no honest signer, or group of honest ones, is named.
        """
        bad = {cheater, *cheaters}
        network = self.network()
        if alter is not None:
            session = CheatingSession(self.context, cheater, self.members, self.rounds, network._transmit(cheater))
            session.alter = alter
            network.sessions[cheater] = session
        outcomes = network.run(self.start, tamper)
        finished = {j: o for j, o in outcomes.items() if o is not None and not isinstance(o, Exception)}
        self.agree({j: o for j, o in finished.items() if j not in bad})
        for j, outcome in outcomes.items():
            if j not in bad and isinstance(outcome, PeerFault):
                assert set(outcome.culprits) <= bad, f"{j} named an honest signer: {outcome}"
                assert not outcome.subset or bad & set(outcome.subset), f"{j} named an honest group: {outcome}"
        return outcomes


def seen(outcome: Any) -> Seen:
    """An outcome in short: `ok`, None (still waiting), or (step, culprits, subset). Other errors show as they are."""
    if isinstance(outcome, PeerFault):
        return (outcome.step, outcome.culprits, outcome.subset)
    if isinstance(outcome, Exception):
        return repr(outcome)
    return None if outcome is None else "ok"


def rewrite(content: bytes, kind: type[RoundMessage], change: Callable[[Any], RoundMessage]) -> bytes:
    """A body with its message changed and its view kept."""
    message = msgspec.msgpack.decode(content[DIGEST_BYTES:], type=kind)
    return content[:DIGEST_BYTES] + msgspec.msgpack.encode(change(message))


def setup_ceremony(n: int = 3, t: int = 1) -> Ceremony:
    """SPEC 1."""

    async def install(seeds: setup.Seeds) -> None:
        assert (seeds.epoch, seeds.roster_digest) == (1, ROSTER_DIGEST)

    def start(session: Session) -> Coroutine[Any, None, setup.Seeds]:
        return setup.setup(session, t, 1, ROSTER_DIGEST, seeded_random(f"setup/{n}/{t}/{session.me}"), install)

    def agree(finished: dict[int, setup.Seeds]) -> None:
        known: dict[setup.Group, bytes] = {}
        for seeds in finished.values():
            for group, seed in zip(seeds.groups, seeds.seeds, strict=True):
                assert known.setdefault(group, seed) == seed, f"two seeds of {group}"

    return Ceremony("setup", tuple(range(1, n + 1)), t, b"S" * 32, setup.ROUNDS, start, agree)


def fake_signature(signer: int, message_digest: bytes) -> bytes:
    """64 bytes that only the honest code makes in these runs: no key, but any alteration shows."""
    return hashlib.sha512(bytes([signer]) + message_digest).digest()


def verify_fake_signature(signed: SignedAcknowledgement) -> bool:
    """Whether `fake_signature` by the named signer."""
    ack = signed.acknowledgement
    return signed.signature == fake_signature(ack.index, ack.digest())


def keygen_ceremony(
    n: int = 3,
    t: int = 1,
    labels: tuple[str, ...] = ("a", "b"),
    kept: dict[int, tuple[keygen.NewKey, ...]] | None = None,
) -> Ceremony:
    """SPEC 2. `kept` gets what each member stored as pending."""
    plan = keygen.KeyPlan("test", ROSTER_DIGEST, t, 1, labels)

    def start(session: Session) -> Coroutine[Any, None, Any]:
        async def store_pending(keys: Any) -> tuple[SignedAcknowledgement, ...]:
            if kept is not None:
                kept[session.me] = tuple(keys)
            return tuple(
                SignedAcknowledgement(key.acknowledgement, fake_signature(session.me, key.acknowledgement.digest()))
                for key in keys
            )

        random = seeded_random(f"keygen/{n}/{t}/{session.me}")
        return keygen.keygen(session, SECP256K1, plan, random, store_pending, verify_fake_signature)

    def agree(finished: dict[int, Any]) -> None:
        assert len(set(finished.values())) <= 1, "two certificates"
        for certificates in finished.values():
            for certificate in certificates:
                assert all(verify_fake_signature(signed) for signed in certificate)
                stated = {msgspec.structs.replace(signed.acknowledgement, index=1) for signed in certificate}
                assert len(stated) == 1

    return Ceremony("keygen", tuple(range(1, n + 1)), t, b"K" * 32, keygen.ROUNDS, start, agree)


@cache
def honest_seeds(n: int, t: int) -> dict[int, setup.Seeds]:
    """The seeds of an honest setup."""
    return results(setup_ceremony(n, t).run())


def sub_seeds(seeds: setup.Seeds, C: tuple[int, ...], t: int, me: int, sid: bytes) -> SubSeeds:
    """SPEC 3.2 for one member."""
    return SubSeeds(
        {A: derive_sub_seed(seeds.of("subset", A), sid) for A in prss.subsets(C, t) if me in A},
        {p: derive_sub_seed(seeds.of("presign-pair", p), sid) for p in prss.pairs(C) if me in p},
    )


def presign_ceremony(
    n: int = 3, t: int = 1, m: int = 3, C: tuple[int, ...] | None = None, sid: bytes = b"P" * 32
) -> Ceremony:
    """SPEC 3."""
    committee = C or tuple(range(1, 2 * t + 2))
    seeds = honest_seeds(n, t)

    def start(session: Session) -> Coroutine[Any, None, presign.Batch]:
        return presign.presign(session, SECP256K1, t, m, sub_seeds(seeds[session.me], committee, t, session.me, sid))

    def agree(finished: dict[int, presign.Batch]) -> None:
        assert len({(batch.sid, batch.points) for batch in finished.values()}) <= 1, "two batches"

    return Ceremony("presign", committee, t, sid, presign.ROUNDS, start, agree)


# --- What signer `CHEATER` of three does, and what the honest ones see ---

CHEATER = 2


def honest(outcomes: dict[int, Any]) -> dict[int, Any]:
    return {j: seen(outcome) for j, outcome in outcomes.items() if j != CHEATER}


def on_the_way(ceremony: Ceremony, number: int, change: Callable[[bytes], bytes], to: int = 0) -> dict[int, Any]:
    """The honest members' outcomes with the cheater's body of a round changed, for all or for one receiver."""

    def tamper(sender: int, receiver: int, round_number: int, content: bytes) -> bytes:
        if (sender, round_number) == (CHEATER, number) and to in (0, receiver):
            return change(content)
        return content

    return honest(ceremony.run(CHEATER, tamper=tamper))


def replaced(*messages: RoundMessage) -> Callable[[RoundMessage, int | None], RoundMessage]:
    """A consistent cheater that broadcasts these in place of its own messages of the same types."""
    kinds = {type(message): message for message in messages}
    return lambda message, receiver: kinds.get(type(message), message) if receiver is None else message


def committed_opening(change: Callable[[keygen.Opening], keygen.Opening]) -> tuple[keygen.Commitment, keygen.Opening]:
    """The cheater's opening of an honest run (its randomness is seeded) changed, and the commitment to that."""
    ceremony = keygen_ceremony()
    kept: dict[type, Any] = {}

    def alter(message: RoundMessage, receiver: int | None) -> RoundMessage:
        kept.setdefault(type(message), message)
        return message

    ceremony.run(CHEATER, alter)
    opening = change(kept[keygen.Opening])
    return keygen.Commitment(keygen._commitment(ceremony.context, CHEATER, opening)), opening
