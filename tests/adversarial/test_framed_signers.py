"""An honest signer's bodies beside whatever a cheater signs, also under receivers that no body of the round has: no
charge made of them convicts anybody but the cheater (SPEC 0.11).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from enclave import wire
from enclave.bodies import BROADCAST, SignedBody
from enclave.errors import Unproven
from enclave.protocol import keygen, presign, setup
from enclave.protocol.blame_messages import STOP, VIEWS, Stop, Views
from enclave.protocol.charges import Charge, Verdict, judge
from enclave.protocol.presign_rules import _deviation_charge, agreed_seeds
from enclave.protocol.session import RoundMessage
from policies.transcript import DIGEST_BYTES
from tests.adversarial.test_blame_framing import CONVICTED, wrong_batch
from tests.adversarial.test_presign_cheats import plus
from tests.fakes.accountable import Court, court, judged
from tests.fakes.rounds import CHEATER, rewrite

OTHERS = (CHEATER, 1, 3, 9)


def other(message: Any) -> Any:
    """A message of the same round that decodes and says something else."""
    match message:
        case presign.Products():
            return msgspec.structs.replace(message, e_w=plus(message.e_w, 1, 1))
        case presign.CheckProducts():
            return msgspec.structs.replace(message, e_tau=plus(message.e_tau, 1, 1))
        case presign.Challenges():
            return msgspec.structs.replace(message, rho=plus(message.rho, 1, 1))
        case presign.Openings():
            return msgspec.structs.replace(message, T=plus(message.T, 1, 1))
        case presign.Confirmation() | keygen.Agreement():
            return msgspec.structs.replace(message, digest=bytes(32))
        case keygen.Commitment():
            return keygen.Commitment(bytes(32))
        case keygen.Opening():
            parts = tuple(msgspec.structs.replace(key, chain_code_part=bytes(32)) for key in message.keys)
            return msgspec.structs.replace(message, keys=parts)
        case setup.Checks():
            return setup.Checks((bytes(32), *message.checks[1:]))
    return message


def variants(running: Court, bodies: Sequence[SignedBody]) -> Iterator[tuple[SignedBody, ...]]:
    """The bodies, with the cheater's each given twice: what was sent under one receiver, something else under another,
    in both orders; and something else alone."""
    honest = [body for body in bodies if body.sender != CHEATER]
    mine = [body for body in bodies if body.sender == CHEATER]
    spoilt = {body.round: rewrite(body.content, running.rules.rounds[body.round - 1], other) for body in mine}
    for receiver in OTHERS:
        for seen, judged_by in ((receiver, BROADCAST), (BROADCAST, receiver)):
            first = [running.sign(CHEATER, body.round, seen, body.content) for body in mine]
            second = [running.sign(CHEATER, body.round, judged_by, spoilt[body.round]) for body in mine]
            yield (*honest, *first, *second)
            yield (*second, *first, *honest)
            yield (*honest, *second)
            for one in range(len(mine)):
                yield (*honest, *mine, second[one])
                yield (*honest, *mine[:one], first[one], second[one], *mine[one + 1 :])


def nobody_honest(running: Court, charge: Charge) -> int:
    """Judge the charge with every variant of the cheater's bodies; how many there were."""
    count = 0
    for variant in variants(running, charge.bodies):
        # By rounds, as the charges of the protocols have them; the accused body of a deviation comes last.
        bodies = tuple(sorted(variant, key=lambda body: body.round))
        try:
            verdict = judge(running.facts, msgspec.structs.replace(charge, bodies=bodies))
        except Unproven:
            pass
        else:
            assert set(verdict.culprits) <= {CHEATER}, verdict
        count += 1
    return count


def rounds(running: Court, *numbers: int) -> tuple[SignedBody, ...]:
    return tuple(running.body(number, j) for number in numbers for j in running.ceremony.members)


@pytest.mark.parametrize("victim", [1, 3])
def test_charges_after_a_success(victim: int) -> None:
    batch, keys = court("presign", m=2), court("keygen")
    for running in (batch, keys):
        running.run()
        assert all(party.delivered for party in running.parties.values())
    agreed, done = keys.body(4, victim), keys.body(5, victim)
    confirmed = batch.body(5, victim)
    for running, charge in (
        (batch, Charge("wrong-confirmation", (*rounds(batch, 3, 4), confirmed))),
        (keys, Charge("wrong-agreement", (*rounds(keys, 1, 2), agreed))),
        (keys, Charge("wrong-acknowledgement", (*rounds(keys, 2), agreed, done))),
        (keys, Charge("wrong-commitment", (keys.body(1, victim), keys.body(2, victim), keys.body(1, CHEATER)))),
        (keys, Charge("wrong-shares", (keys.body(2, victim), keys.body(3, victim), keys.body(2, CHEATER)))),
    ):
        assert nobody_honest(running, charge) >= 40


STOPS: dict[str, tuple[str, int]] = {
    "3.3": ("presign", 1),
    "3.5": ("presign", 3),
    "3.7": ("presign", 4),
    "3.9": ("presign", 5),
    "2.4": ("keygen", 4),
    "1.3": ("setup", 3),
}


def stopped(step: str) -> tuple[Court, SignedBody]:
    """A ceremony that `step` ends, and what the cheater would have sent where it would have held."""
    name, number = STOPS[step]
    right: list[RoundMessage] = []

    def spoil(message: RoundMessage, _: int | None) -> RoundMessage:
        if not isinstance(message, running.rules.rounds[number - 1]):
            return message
        right.append(message)
        if isinstance(message, presign.Products):
            return msgspec.structs.replace(message, commitments=(bytes(32), *message.commitments[1:]))
        return other(message)

    running = court(name, m=2, alters={CHEATER: spoil})
    running.run()
    sent = running.body(number, CHEATER)
    return running, running.sign(CHEATER, number, BROADCAST, sent.content[:DIGEST_BYTES] + wire.encode(right[0]))


@pytest.mark.parametrize("step", STOPS)
@pytest.mark.parametrize("victim", [1, 3])
def test_a_right_stop_is_no_false_one(step: str, victim: int) -> None:
    running, right = stopped(step)
    number = STOPS[step][1]
    stop, sent = running.body(STOP, victim), running.body(number, CHEATER)
    assert wire.decode(stop.content[DIGEST_BYTES:], Stop).step in (step, "")
    honest = [running.body(number, j) for j in (1, 3)]
    for seen in OTHERS:
        bad = running.sign(CHEATER, number, seen, sent.content)
        good = running.sign(CHEATER, number, BROADCAST, right.content)
        for bodies in ((bad, good), (good, bad), (good,), (sent, good), (good, sent)):
            for views in ((), (running.body(VIEWS, victim),) if any_views(running, victim) else ()):
                charge = Charge("false-stop", (stop, *views, *honest, *bodies))
                assert not convicts(running, charge, victim)
    assert nobody_honest(running, Charge("false-stop", (stop, *honest, sent))) > 10


def any_views(running: Court, j: int) -> bool:
    return any((body.round, body.sender) == (VIEWS, j) for body in running.sent)


def convicts(running: Court, charge: Charge, j: int) -> bool:
    verdict = judged(running.facts, charge)
    return isinstance(verdict, Verdict) and j in verdict.culprits


@pytest.mark.parametrize("victim", [1, 3])
def test_recomputed_and_compared_bodies(victim: int) -> None:
    """Every sub-seed is open, so everybody's bodies can be computed again, and everybody has shown its views."""
    running = wrong_batch()
    assert {j: (found.culprits, found.subset, found.silent) for j, found in running.run().items() if j != CHEATER} == {
        1: CONVICTED,
        3: CONVICTED,
    }
    log = running.parties[1].log
    seeds = agreed_seeds(running.facts, log)
    views = running.body(VIEWS, victim)
    for number in range(1, 5):
        charge = _deviation_charge(running.facts, log, seeds, victim, number)
        assert nobody_honest(running, charge) > 0
        for extra in ((), (running.body(number, CHEATER),)):
            assert nobody_honest(running, Charge("contradiction", (views, running.body(number, victim), *extra))) > 0


def test_a_proof_with_a_body_for_another_receiver_is_ignored() -> None:
    """The cheater is consistent with its wrong challenge; in its views it says that the stop for it was a false one."""
    right: list[RoundMessage] = []

    def spoil(message: RoundMessage, _: int | None) -> RoundMessage:
        if isinstance(message, presign.Challenges):
            right.append(message)
        return other(message) if isinstance(message, presign.Challenges) else message

    running = court("presign", m=2, alters={CHEATER: spoil})

    def cheat(sender: int, receiver: int, number: int, content: bytes) -> bytes:
        if (sender, number) != (CHEATER, VIEWS):
            return content
        victim, sent = 4 - receiver, running.body(3, CHEATER)
        good = running.sign(CHEATER, 3, BROADCAST, sent.content[:DIGEST_BYTES] + wire.encode(right[0]))
        bad = running.sign(CHEATER, 3, 9, sent.content)
        proof = Charge("false-stop", (running.body(STOP, victim), running.body(3, 1), running.body(3, 3), good, bad))
        return rewrite(content, Views, lambda views: msgspec.structs.replace(views, proof=wire.encode(proof)))

    running.cheat = cheat
    running.run()
    running.end()
    running.check({CHEATER})


def test_bodies_of_another_form_than_their_round_prove_nothing() -> None:
    """A private body of a broadcast round, a broadcast one of a private round, one for nobody of the ceremony."""
    keys = court("keygen")
    keys.run()
    opened, shares = keys.body(2, CHEATER), keys.body(3, CHEATER)
    wrong = keygen.Shares(tuple(bytes(31) + b"\1" for _ in range(2)))
    content = shares.content[:DIGEST_BYTES] + wire.encode(wrong)
    assert convicts(keys, Charge("wrong-shares", (opened, keys.sign(CHEATER, 3, 1, content))), CHEATER)
    for bodies in (
        (keys.sign(CHEATER, 2, 1, opened.content), keys.sign(CHEATER, 3, 1, content)),
        (opened, keys.sign(CHEATER, 3, 9, content)),
        (opened, keys.sign(CHEATER, 3, BROADCAST, content)),
        (opened, keys.sign(CHEATER, 3, 1, content), keys.sign(CHEATER, 50, BROADCAST, content)),
        (opened, keys.sign(CHEATER, 3, 1, content), keys.sign(CHEATER, 3, 3, content)),
    ):
        assert not convicts(keys, Charge("wrong-shares", bodies), CHEATER)


@pytest.mark.parametrize("extra", [0, 50, 104, 255])
@pytest.mark.parametrize("to", [(1,), (3,), (1, 3)])
@pytest.mark.parametrize("name", ["setup", "keygen", "presign"])
def test_a_round_that_does_not_exist_after_a_success(name: str, to: tuple[int, ...], extra: int) -> None:
    """SPEC 0.8: for 20 s everybody answers. The cheater sends some a body of no round, and then a stop to all."""
    running = court(name, m=1)
    running.run()

    def send(receiver: int, number: int, content: bytes) -> None:
        body = running.sign(CHEATER, number, BROADCAST, content)
        running.queue.append((receiver, (number, CHEATER, BROADCAST, content, body.signature)))

    for receiver in to:
        send(receiver, extra, bytes(40))
    confirmation = running.body(5, CHEATER) if name == "presign" else None
    stop = Stop("0.6", 5, 0, None, confirmation, (), b"")
    for receiver in (1, 3):
        send(receiver, STOP, running.parties[CHEATER].session.view + wire.encode(stop))
    running.deliver()
    running.end()
    running.check({CHEATER})
    for j in to:
        assert running.parties[j].outcome.culprits == (CHEATER,)
