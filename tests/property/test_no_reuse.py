"""Whatever happens to a network, in whatever order: no nonce serves two messages, no share leaves without a decision
record, all shares of one request make a valid signature, and afterwards the network signs again.

The steps are those of `tests/fakes/adversity.py`; hypothesis chooses them and shrinks what fails. Hundreds in every
check, tens of thousands in `make soak`. At the end, enclaves with a defect of each kind: the watcher sees it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from enclave.effects import Effects
from enclave.online import OnlineStep
from enclave.pool import PresignaturePool
from enclave.protocol import sign
from enclave.wire import BatchShareReport, PresignatureName, ShareReport
from policies.transcript import Tag
from tests.fakes.adversity import Adversity

MOST = 5
MEMBER, SMALL = st.integers(0, MOST - 1), st.integers(0, 255)
# Mostly the same for everybody: only then something is signed.
SAME = st.tuples(st.integers(0, 1), st.integers(0, 5)).map(lambda pick: [pick] * MOST)
PICKS = SAME | st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=MOST, max_size=MOST)
NEWEST = st.just([[0] * MOST] * MOST)
CHOICES = NEWEST | st.lists(st.lists(st.integers(0, 2), min_size=MOST, max_size=MOST), min_size=MOST, max_size=MOST)


class Machine(RuleBasedStateMachine):
    """One network. `scheme`: signers, and how many are tolerated."""

    scheme = (3, 1)

    def __init__(self) -> None:
        super().__init__()
        self.world = Adversity(*self.scheme)
        self.committees = list(combinations(self.world.everybody, self.world.size))

    def member(self, number: int) -> int:
        return self.world.everybody[number % len(self.world.everybody)]

    def committee(self, number: int) -> tuple[int, ...]:
        # Mostly the first one, so that its names are used.
        return self.committees[number % len(self.committees) if number > MOST // 2 else 0]

    @precondition(lambda self: len(self.world.keys) < 2)
    @rule()
    def create_key(self) -> None:
        self.world.create_key()

    @rule(committee=MEMBER)
    def presign(self, committee: int) -> None:
        self.world.presign(self.committee(committee))

    @rule(message=SMALL, path=st.integers(0, 3), batch=st.booleans())
    def ask(self, message: int, path: int, batch: bool) -> None:
        self.world.ask(message, path, batch)

    @rule(picks=PICKS, committee=MEMBER)
    def authorise(self, picks: list[tuple[int, int]], committee: int) -> None:
        self.world.authorise(picks, self.committee(committee))

    @rule(choices=CHOICES, committee=MEMBER, now=st.booleans())
    def online(self, choices: list[list[int]], committee: int, now: bool) -> None:
        self.world.online(choices, self.committee(committee))
        if now:
            self.world.settle()

    @rule(message=SMALL, batch=st.booleans(), committee=MEMBER)
    def sign(self, message: int, batch: bool, committee: int) -> None:
        self.world.sign(self.committee(committee), message, batch)

    @rule(
        message=SMALL,
        batch=st.booleans(),
        plan=st.lists(st.integers(0, 4), min_size=MOST, max_size=MOST),
        crash=st.none() | MEMBER,
        committee=MEMBER,
    )
    def race(self, message: int, batch: bool, plan: list[int], crash: int | None, committee: int) -> None:
        """Two requests under one name."""
        dying = None if crash is None else self.member(crash)
        self.world.race(self.committee(committee), message, batch, plan, dying)

    @rule(member=MEMBER)
    def refuse(self, member: int) -> None:
        self.world.refuse(self.member(member))

    @rule()
    def repair(self) -> None:
        """Gates agree, operators accept what runs, nothing is under way."""
        self.world.refuse(0)
        for j in self.world.everybody:
            if any(j in self.world.net.members[i].core._standing.book.refused for i in self.world.everybody):
                self.world.crash(j, in_the_middle=False)
                self.world.accept(j)
        if len({self.world.net.members[j].core._prss.epoch for j in self.world.everybody}) > 1:
            self.world.new_epoch()

    @rule()
    def abandon(self) -> None:
        self.world.abandon()

    @rule(member=MEMBER, in_the_middle=st.booleans())
    def crash(self, member: int, in_the_middle: bool) -> None:
        self.world.crash(self.member(member), in_the_middle)

    @rule(member=MEMBER)
    def restart_signer(self, member: int) -> None:
        self.world.restart_signer(self.member(member))

    @rule(member=MEMBER)
    def copy_disk(self, member: int) -> None:
        self.world.copy_disk(self.member(member))

    @rule(member=MEMBER, which=st.integers(0, 3), accepted=st.booleans())
    def restore_disk(self, member: int, which: int, accepted: bool) -> None:
        self.world.restore_disk(self.member(member), which, accepted)

    @rule(member=MEMBER)
    def start_copy(self, member: int) -> None:
        self.world.start_copy(self.member(member))

    @rule(member=MEMBER)
    def swap_copy(self, member: int) -> None:
        self.world.swap_copy(self.member(member))

    @rule(picks=st.lists(SMALL, min_size=1, max_size=8))
    def replay(self, picks: list[int]) -> None:
        self.world.replay(picks)
        self.world.net.run()

    @rule(seed=SMALL, most=st.integers(0, 20))
    def reorder(self, seed: int, most: int) -> None:
        self.world.reorder(seed, most)

    @rule(member=MEMBER)
    def flicker(self, member: int) -> None:
        self.world.flicker(self.member(member))

    @rule(seconds=st.sampled_from([1, 10, 31, 61]))
    def pass_time(self, seconds: int) -> None:
        self.world.pass_time(seconds)

    @rule()
    def new_epoch(self) -> None:
        self.world.new_epoch()

    def teardown(self) -> None:
        assert self.world.recover()


class OneOfFive(Machine):
    """Any three of five sign."""

    scheme = (5, 1)


class TwoOfFive(Machine):
    """All five sign."""

    scheme = (5, 2)


def steps(machine: type[Machine], runs: int, length: int, *, fixed: bool, shrink: bool = True) -> None:
    """`runs` networks of at most `length` steps each; `fixed`: the same ones every time."""
    chosen = settings(
        max_examples=runs,
        stateful_step_count=length,
        derandomize=fixed,
        database=None,
        deadline=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


@pytest.mark.parametrize(("machine", "runs"), [(Machine, 15), (OneOfFive, 12), (TwoOfFive, 10)])
def test_hundreds_of_steps(machine: type[Machine], runs: int) -> None:
    """They get to signatures, and to presignatures that were spent for a request of which the others knew nothing."""
    reached: Counter[str] = Counter()

    class Counted(machine):  # type: ignore[misc, valid-type]
        def teardown(self) -> None:
            seen = self.world.seen
            reached["complete"] += seen.signatures
            reached["incomplete"] += sum(len(of_all) < len(use.committee) for use, of_all in seen.shares.items())
            super().teardown()

    steps(Counted, runs, 40, fixed=True)
    assert min(reached["complete"], reached["incomplete"]) > 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("machine", "runs"), [(Machine, 500), (OneOfFive, 150), (TwoOfFive, 100)])
def test_tens_of_thousands_of_steps(machine: type[Machine], runs: int) -> None:
    steps(machine, runs, 50, fixed=False)


# --- enclaves with a defect: the watcher sees each of them ---


def keep_presignatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that gives one out and keeps it."""

    def take_all(pool: Any, names: Sequence[PresignatureName], committee: tuple[int, ...], epoch: int) -> list[Any]:
        kept = copy.deepcopy(pool._batches)
        taken = honest(pool, names, committee, epoch)
        pool._batches = kept
        return taken

    honest = PresignaturePool.take_all
    monkeypatch.setattr(PresignaturePool, "take_all", take_all)


def trust_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An online step that does not look at what the others have authorised."""
    monkeypatch.setattr(OnlineStep, "_check_peer", lambda *_: None)


def keep_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares that leave without their audit entry."""
    honest = Effects.report

    def report(effects: Effects, coordinator: str, body: Any, audit: Any = (), *others: Any) -> None:
        honest(effects, coordinator, body, () if isinstance(body, ShareReport | BatchShareReport) else audit, *others)

    monkeypatch.setattr(Effects, "report", report)


def mask_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that do not cancel."""
    honest = sign.online_zero
    monkeypatch.setattr(sign, "online_zero", lambda *of: honest(*of) + 1)


def name_the_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that takes the named presignature out and gives the batch's first one."""
    honest = PresignaturePool._take

    def take(pool: Any, name: PresignatureName) -> Any:
        first = bytes(pool._batches[name.sid].inverse_shares[:32])
        taken = honest(pool, name)
        if first == bytes(32):
            return taken
        return msgspec.structs.replace(taken, inverse_share=int.from_bytes(first, "big"))

    monkeypatch.setattr(PresignaturePool, "_take", take)


def rerandomise_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """One nonce point for all requests that a presignature is named for."""
    honest = sign.digest
    monkeypatch.setattr(
        sign, "digest", lambda tag, *parts: honest(tag) if tag is Tag.ONLINE_DELTA else honest(tag, *parts)
    )


DEFECTS: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    keep_presignatures: "used one presignature twice",
    trust_peers: "although others authorised otherwise",
    keep_no_record: "not enough values to unpack",
    mask_wrongly: "InvalidSignature",
    name_the_wrong_one: "InvalidSignature",
    rerandomise_not: "one nonce point for two signatures",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_is_seen(monkeypatch: pytest.MonkeyPatch, defect: Callable[[pytest.MonkeyPatch], None]) -> None:
    defect(monkeypatch)
    with pytest.raises((AssertionError, ValueError, InvalidSignature)) as seen:
        steps(Machine, 60, 40, fixed=True, shrink=False)
    assert DEFECTS[defect] in f"{seen.type.__name__} {seen.value}"
