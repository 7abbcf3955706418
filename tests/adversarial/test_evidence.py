"""Whole enclaves, one of them a cheater: who is reported, what evidence is handed out, and what that proves offline."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enclave import ceremonies, verdicts, wire, worker
from enclave.channels.frames import CEREMONY_FRAME
from enclave.evidence import Evidence, evidence_digest, verify_evidence
from enclave.protocol import keygen, presign, setup
from enclave.protocol.blame_messages import CLOSING
from enclave.protocol.session import RoundMessage, Session
from policies.errors import CallerError, KeymootError, Refused
from policies.roster import Roster
from tests.adversarial.conftest import COMMITTEE, make_net
from tests.adversarial.test_presign_cheats import plus
from tests.fakes.clients import TestClient
from tests.fakes.enclaves import COORDINATOR, Net
from tests.fakes.rounds import CHEATER, Alter, CheatingSession

HONEST = (1, 3)
ROUND_AT = 34


def wrong_product(message: RoundMessage, _: int | None) -> RoundMessage:
    if isinstance(message, presign.Products):
        return msgspec.structs.replace(message, e_mu=plus(message.e_mu, 1, 5))
    return message


def wrong_contribution(message: RoundMessage, _: int | None) -> RoundMessage:
    if isinstance(message, setup.Contributions):
        return setup.Contributions((bytes(32), *message.contributions[1:]))
    return message


def wrong_share(message: RoundMessage, _: int | None) -> RoundMessage:
    return keygen.Shares((bytes(31) + b"\1",)) if isinstance(message, keygen.Shares) else message


def wrong_commitment(message: RoundMessage, _: int | None) -> RoundMessage:
    if isinstance(message, presign.Products):
        return msgspec.structs.replace(message, commitments=(bytes(32), *message.commitments[1:]))
    return message


def cheats(monkeypatch: pytest.MonkeyPatch, alter: Alter) -> None:
    """The enclave of `CHEATER` sends something else, from now on."""

    def session(context: bytes, me: int, *rest: Any) -> Session:
        if me != CHEATER:
            return Session(context, me, *rest)
        cheating = CheatingSession(context, me, *rest)
        cheating.alter = alter
        return cheating

    monkeypatch.setattr(worker, "Session", session)
    monkeypatch.setattr(ceremonies, "Session", session)


def evidence_of(net: Net, j: int) -> list[bytes]:
    """The files that the signer of `j` was given, in the order of its enclave."""
    files: list[bytes] = []
    for said in net.members[j].said:
        if isinstance(said, wire.EvidencePart):
            if said.number == 1:
                files.append(b"")
            files[-1] += said.data
            if said.number == said.count:
                assert evidence_digest(files[-1]) == said.evidence
    return files


def running() -> tuple[Net, TestClient]:
    net, client, _ = make_net()
    net.start()
    assert sorted(net.setup()) == [1, 2, 3]
    net.drain()
    return net, client


def failures(net: Net) -> dict[int, tuple[Any, ...]]:
    """What each honest member reported: culprits and group of the failure, and of the announcement before it."""
    found = {}
    for j, reports in net.drain().items():
        kinds = [type(report) for report in reports if not isinstance(report, wire.NonceReport)]
        if j in HONEST:
            assert kinds == [wire.Convicted, wire.CeremonyFailed], kinds
            convicted, failed = reports[-2:]
            assert (convicted.culprits, convicted.group, convicted.step) == (failed.culprits, failed.group, failed.step)
            assert failed.suspects == ()
            found[j] = (failed.step, failed.culprits, failed.group)
    return found


def cheat_in(net: Net, client: TestClient, kind: str) -> None:
    nonces = net.nonces(COMMITTEE, kind)
    order: Any = {
        "setup": lambda: wire.SetupOrder(b"setup-ceremony--", 2, nonces),
        "keygen": lambda: wire.KeygenOrder(b"keygen-ceremony-", (request,), nonces),
        "presign": lambda: wire.PresignOrder(b"presign-ceremony", COMMITTEE, 3, nonces),
    }[kind]
    request = client.create_key()
    for j in COMMITTEE:
        net.order(j, order())
    net.run()


CASES: dict[str, tuple[str, Alter, tuple[Any, ...]]] = {
    "a wrong product": ("presign", wrong_product, ("3.3", (CHEATER,), ())),
    "another commitment": ("presign", wrong_commitment, ("3.3", (), (1, 2))),
    "a wrong contribution": ("setup", wrong_contribution, ("1.2", (CHEATER,), ())),
    "a wrong share": ("keygen", wrong_share, ("2.3", (CHEATER,), ())),
}


@pytest.mark.parametrize("name", CASES)
def test_whole_enclaves_name_the_cheater_and_hand_out_evidence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, alter, expected = CASES[name]
    net, client = running()
    cheats(monkeypatch, alter)
    cheat_in(net, client, kind)
    assert failures(net) == {1: expected, 3: expected}
    for j in HONEST:
        (file,) = evidence_of(net, j)
        proved = verify_evidence(file, net.roster)
        assert (proved.kind, proved.members) == (kind, COMMITTEE)
        assert (proved.verdict.step, proved.verdict.culprits, proved.verdict.subset) == expected
        entry = json.loads(net.members[j].audit[-1].body)
        assert entry["event"] == "convicted"
        assert (entry["culprits"], entry["group"]) == (list(expected[1]), list(expected[2]))
        assert entry["evidence"] == evidence_digest(file).hex()
    # Nothing lasts of it: the next one, honest, works.
    monkeypatch.undo()
    if kind == "presign":
        assert sorted(net.presign(COMMITTEE, 2)) == [1, 2, 3]


@pytest.mark.parametrize("extra", [0, 50, 104, 255])
@pytest.mark.parametrize("to", [(1,), HONEST])
@pytest.mark.parametrize("kind", ["setup", "keygen", "presign"])
def test_a_body_of_no_round_over_real_channels(
    kind: str, to: tuple[int, ...], extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever receives it is not convicted of having it; its sender is, by everybody."""
    net, client = running()
    real, begun = Session.broadcast, set()

    def broadcast(self: Session, message: RoundMessage) -> None:
        if self.me == CHEATER and self.context not in begun:
            begun.add(self.context)
            self._transmit(extra, to, False, bytes(40))
        real(self, message)

    monkeypatch.setattr(Session, "broadcast", broadcast)
    cheat_in(net, client, kind)
    expected = ("0.6", (CHEATER,), ())
    assert failures(net) == {1: expected, 3: expected}
    for j in HONEST:
        assert [verify_evidence(file, net.roster).verdict.culprits for file in evidence_of(net, j)] == [(CHEATER,)]


def test_breaking_the_link_does_not_save_whom_a_proof_convicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong confirmation convicts by itself. Behind it the cheater sends more frames than the protocol has: the
    enclave sees these before its worker has answered."""
    net, client = running()
    real, held = Session.broadcast, []

    def broadcast(self: Session, message: RoundMessage) -> None:
        wrong = self.me == CHEATER and isinstance(message, presign.Confirmation)
        real(self, presign.Confirmation(bytes(32)) if wrong else message)

    def relay(sender: int, receiver: int, data: bytes) -> list[tuple[int, int, bytes]]:
        if not of_cheater(sender, data) or data[ROUND_AT] < len(presign.ROUNDS):
            return [(sender, receiver, data)]
        if data[ROUND_AT] == len(presign.ROUNDS):
            held.append((receiver, data))
        return []

    monkeypatch.setattr(Session, "broadcast", broadcast)
    net.relay = relay
    cheat_in(net, client, "presign")
    assert sorted(receiver for receiver, _ in held) == [1, 3]
    for receiver, data in held:
        for _ in range(9):
            net.tell(receiver, wire.PeerFrame(COORDINATOR, CHEATER, data))
    net.run()
    assert {j: found[1] for j, found in failures(net).items()} == {1: (CHEATER,), 3: (CHEATER,)}


@pytest.mark.parametrize("late", [False, True])
def test_a_link_that_breaks_without_a_proof_is_the_links_fault(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where the worker does not answer, the batch ends all the same."""
    net, client = running()
    if late:
        monkeypatch.setattr(worker.Worker, "handle", ignoring_ends(worker.Worker.handle))
    # Spoiled ones; or too many, of which this end knows by itself.
    spoil = (lambda d: [d] * 9) if late else (lambda d: [d[:-1] + bytes([d[-1] ^ 1])])
    net.relay = lambda s, r, d: [(s, r, each) for each in (spoil(d) if of_cheater(s, d) else [d])]
    cheat_in(net, client, "presign")
    if late:
        assert not any(isinstance(said, wire.CeremonyFailed) for j in HONEST for said in net.drain()[j])
        net.advance(61)
        net.run()
    failed = [said for j, said_by in net.drain().items() if j in HONEST for said in said_by]
    kinds = [said.kind for said in failed if isinstance(said, wire.CeremonyFailed)]
    assert kinds == ["link", "link"]
    assert not any(isinstance(said, wire.Convicted) for said in failed)


@pytest.mark.parametrize("kind", ["setup", "keygen"])
def test_more_frames_than_the_protocol_has_are_the_links_fault(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed ones too, of a round of blame that is looked at in its turn."""
    net, client = running()
    real = Session.broadcast

    def broadcast(self: Session, message: RoundMessage) -> None:
        if self.me == CHEATER:
            for _ in range(5):
                self._transmit(CLOSING, HONEST, False, bytes(40))
        real(self, message)

    monkeypatch.setattr(Session, "broadcast", broadcast)
    cheat_in(net, client, kind)
    said = [each for j, reports in net.drain().items() if j in HONEST for each in reports]
    failed = [each for each in said if isinstance(each, wire.CeremonyFailed)]
    assert [(each.kind, each.suspects, each.reason) for each in failed] == [
        ("link", (CHEATER,), "more frames than the protocol has")
    ] * 2


def test_evidence_of_one_ceremony_is_bounded(
    proved: tuple[Roster, bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many charges: what does not fit is announced without a file."""
    evidence = wire.decode(proved[1], Evidence)
    monkeypatch.setattr(verdicts, "MAX_EVIDENCE_BYTES", 2 * len(proved[1]))
    parts: list[wire.EvidencePart] = []
    told: list[Any] = []
    record = type("Record", (), {"kind": "presign", "evidence": lambda self, charge: charge})()
    audit = type("Audit", (), {"record": lambda self, *_, **__: None})()
    teller = verdicts.Verdicts(audit, lambda _, report, entries: told.append(report), parts.append)
    failure = wire.CeremonyFailed(bytes(16), "peer", "3.4", "x", (CHEATER,), (), 3, ())
    teller.tell("c", bytes(32), record, failure, [evidence] * 5)  # type: ignore[list-item]
    assert [report.evidence != bytes(32) for report in told] == [True, True, False, False, False]
    assert len(parts) == 2


def of_cheater(sender: int, data: bytes) -> bool:
    return sender == CHEATER and data[:1] == CEREMONY_FRAME


def ignoring_ends(handle: Any) -> Any:
    def handled(self: worker.Worker, message: Any) -> None:
        if isinstance(message, worker.Begin):
            handle(self, message)

    return handled


@pytest.fixture(scope="module")
def proved() -> tuple[Roster, bytes, bytes]:
    """A roster, evidence of a wrong product, and evidence of another batch."""
    with pytest.MonkeyPatch.context() as patch:
        net, client = running()
        cheats(patch, wrong_product)
        cheat_in(net, client, "presign")
        cheat_in(net, client, "presign")
        first, second = evidence_of(net, 1)
        return net.roster, first, second


def convicted(data: bytes, roster: Roster) -> tuple[int, ...]:
    """Whom it convicts; nobody where it is refused. Nothing but our errors escapes."""
    try:
        return verify_evidence(data, roster).verdict.culprits
    except (Refused, CallerError):
        return ()


def test_no_altered_evidence_convicts_anybody_else(proved: tuple[Roster, bytes, bytes]) -> None:
    roster, data, _ = proved
    rng = random.Random(1)
    assert convicted(data, roster) == (CHEATER,)
    for _ in range(600):
        place = rng.randrange(len(data))
        altered = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        assert convicted(altered, roster) in ((), (CHEATER,))
    for size in (0, 1, 100, len(data) - 1):
        assert convicted(data[:size], roster) == ()
    assert convicted(data + b"\0", roster) == ()


def test_evidence_is_bound_to_roster_ceremony_and_sub_seeds(proved: tuple[Roster, bytes, bytes]) -> None:
    roster, data, other = proved
    evidence, second = wire.decode(data, Evidence), wire.decode(other, Evidence)
    replace = msgspec.structs.replace
    charge = evidence.charge
    mixed = {
        "another batch's charge": replace(evidence, charge=second.charge),
        "another batch's nonces": replace(evidence, nonces=second.nonces),
        "another count": replace(evidence, parameters=(*evidence.parameters[:2], (4).to_bytes(4, "big"))),
        "another kind": replace(evidence, kind="keygen"),
        "swapped sessions": replace(evidence, sessions=evidence.sessions[::-1]),
        "no sessions": replace(evidence, sessions=()),
        "no sub-seeds": replace(evidence, charge=replace(charge, seeds=())),
        "others' sub-seeds": replace(evidence, charge=replace(charge, seeds=second.charge.seeds)),
        "an honest body as the accused": replace(evidence, charge=replace(charge, bodies=charge.bodies[:-1])),
        "no bodies": replace(evidence, charge=replace(charge, bodies=())),
        "another charge": replace(evidence, charge=replace(charge, kind="bad-body")),
        "an unknown charge": replace(evidence, charge=replace(charge, kind="whatever")),
    }
    for name, wrong in mixed.items():
        assert convicted(wire.encode(wrong), roster) == (), name
    stranger = replace(roster, signers=(*roster.signers[:2], replace(roster.signers[2], operator="Somebody else")))
    with pytest.raises(Refused, match="another roster"):
        verify_evidence(data, stranger)
    forged = replace(replace(evidence, roster_digest=stranger.digest()))
    with pytest.raises(KeymootError):
        verify_evidence(wire.encode(forged), stranger)


def test_evidence_shows_sub_seeds_of_the_accused_in_one_batch_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    net, client = running()
    cheats(monkeypatch, wrong_product)
    cheat_in(net, client, "presign")
    (file,) = evidence_of(net, 1)
    charge = wire.decode(file, Evidence).charge
    assert {(seed.kind, seed.members) for seed in charge.seeds} == {
        (kind, members) for kind in ("subset", "pair") for members in ((1, 2), (2, 3))
    }
    for member in net.members.values():
        core: Any = member.core
        assert not any(seed in file for seed in core._prss._current().seeds)
        assert core._session.frame_secret[:32] not in file


def test_the_command_convicts_in_a_process_of_its_own(proved: tuple[Roster, bytes, bytes], tmp_path: Path) -> None:
    roster, data, _ = proved
    (tmp_path / "file.evidence").write_bytes(data)
    (tmp_path / "roster.yaml").write_text(json.dumps(msgspec.to_builtins(roster)))
    keymoot = Path(sys.executable).with_name("keymoot")

    def verify(file: Path) -> tuple[int, str]:
        done = subprocess.run(
            [keymoot, "evidence", "verify", file, "--roster", tmp_path / "roster.yaml", "--json"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "NO_COLOR": "1"},
        )
        return done.returncode, done.stdout

    code, output = verify(tmp_path / "file.evidence")
    assert code == 0
    shown = json.loads(output)
    assert [signer["name"] for signer in shown["convicted"]] == ["signer-2"]
    assert (shown["proves"], shown["step"], shown["ceremony"]) == (True, "3.3", "presign")
    (tmp_path / "cut.evidence").write_bytes(data[:-1])
    code, output = verify(tmp_path / "cut.evidence")
    assert (code, json.loads(output)["proves"]) == (1, False)


# --- a coordinator that interferes while the members find out who it was ---


@pytest.mark.parametrize("seed", range(24))
def test_a_coordinator_that_interferes_with_blame_frames_nobody(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last round on it drops, repeats, reorders, flips and swaps: the cheater is named, or nobody is."""
    net, client = running()
    cheats(monkeypatch, wrong_product)
    rng, held = random.Random(seed), [(1, 3, b"\2" * 200)]
    count = 0

    def relay(sender: int, receiver: int, data: bytes) -> list[tuple[int, int, bytes]]:
        nonlocal count
        count += data[:1] == b"\2"
        frame = (sender, receiver, data)
        # Four rounds of six frames come before anybody stops.
        if data[:1] != b"\2" or count <= 24 or rng.random() < 0.8:
            return [frame]
        held.append(frame)
        flipped = (sender, receiver, data[:-1] + bytes([data[-1] ^ 1]))
        return rng.choice([[], [frame, frame], [flipped], [(receiver, sender, data)], [rng.choice(held), frame]])

    net.relay = relay
    cheat_in(net, client, "presign")
    net.advance(61)
    net.relay = lambda sender, receiver, data: [(sender, receiver, data)]
    ended = 0
    for j, reports in net.drain().items():
        for report in reports:
            if isinstance(report, wire.CeremonyFailed):
                ended += 1
                assert set(report.culprits) <= {CHEATER} or j == CHEATER
                assert report.group == ()
    assert ended == 3
    assert [len(member.core.pool) for member in net.members.values()] == [0, 0, 0]
    assert [len(member.core._ceremonies) for member in net.members.values()] == [0, 0, 0]
    monkeypatch.undo()
    net.presence(())
    for j in COMMITTEE:
        net.tell(j, wire.Presence("main", ()))
    net.run()
    net.presence(COMMITTEE)
    net.run()
    net.drain()
    assert sorted(net.presign(COMMITTEE, 2)) == [1, 2, 3]


def test_finished_ceremonies_are_let_go_and_bounded() -> None:
    net, _ = running()
    for _ in range(70):
        assert sorted(net.presign(COMMITTEE, 1)) == [1, 2, 3]
    for member in net.members.values():
        core: Any = member.core
        assert len(core._ceremonies._lingering) == ceremonies.MAX_LINGERING
        assert len(core.batches._finished) == ceremonies.MAX_LINGERING
    net.advance(ceremonies.LINGER_S + 1)
    for member in net.members.values():
        core = member.core
        assert (core._ceremonies._lingering, core.batches._finished) == ({}, {})
        assert len(core.pool) == 70


# --- a cheater, or a coordinator, that plays for time ---


def held_blame(net: Net, late_s: float) -> list[tuple[int, int, bytes]]:
    """A batch that fails in its fourth round `late_s` after its start; what the members say after that is held."""
    held: list[tuple[int, int, bytes]] = []
    count = 0

    def relay(sender: int, receiver: int, data: bytes) -> list[tuple[int, int, bytes]]:
        nonlocal count
        if data[:1] != b"\2":
            return [(sender, receiver, data)]
        count += 1
        if count == 1:
            net.clock.now_s += late_s
        # Four rounds of six frames come before anybody stops.
        if count <= 24:
            return [(sender, receiver, data)]
        held.append((sender, receiver, data))
        return []

    net.relay = relay
    return held


def test_finding_out_who_it_was_has_a_deadline_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    net, client = running()
    cheats(monkeypatch, wrong_product)
    held = held_blame(net, ceremonies.DEADLINE_S - 1)
    cheat_in(net, client, "presign")
    net.advance(ceremonies.BLAME_DEADLINE_S - 1)
    assert not any(isinstance(report, wire.CeremonyFailed) for found in net.reports.values() for report in found)
    net.relay = lambda sender, receiver, data: [(sender, receiver, data)]
    for sender, receiver, data in held:
        net.tell(receiver, wire.PeerFrame("main", sender, data))
    net.run()
    assert failures(net) == dict.fromkeys(HONEST, ("3.3", (CHEATER,), ()))


def test_finding_out_who_it_was_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    net, client = running()
    cheats(monkeypatch, wrong_product)
    held_blame(net, 0.0)
    cheat_in(net, client, "presign")
    net.advance(ceremonies.BLAME_DEADLINE_S + 1)
    found = {
        j: [(r.kind, r.culprits) for r in reports if isinstance(r, wire.CeremonyFailed)]
        for j, reports in net.drain().items()
    }
    assert found == {j: [("peer", ())] for j in COMMITTEE}
    assert [len(member.core._ceremonies) for member in net.members.values()] == [0, 0, 0]
