"""Convicted signers at the coordinator: whose word counts, who is left out, what a restart keeps, who readmits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.coordinator.convictions import MAX_WORDS, Convictions, read_convictions, readmit
from appliance.coordinator.standing import Standing
from enclave import wire
from policies.errors import CallerError
from tests.fakes.coordinator_side import Dealer


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def word(
    *culprits: int, group: tuple[int, ...] = (), evidence: bytes = b"e" * 32, context: bytes = b"c" * 32
) -> wire.Convicted:
    return wire.Convicted(bytes(16), "presign", context, "3.4", "a wrong e_tau", culprits, group, evidence)


Make = Callable[[], Convictions]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Make:
    roster = Dealer.make(5, 2).roster
    return lambda: Convictions(roster, tmp_path / "convicted.json", lambda: None, lambda: 1.8e9, clock)


def test_more_than_t_others_must_say_it(make: Make) -> None:
    convictions = make()
    for reporter in (1, 3, 1, 3):
        convictions.announced(reporter, word(2))
    assert convictions.indices() == frozenset()
    convictions.announced(5, word(2))
    assert convictions.indices() == {2}
    found = convictions.of("signer-2")
    assert found is not None
    assert (found.by, found.step, found.evidence) == (("signer-1", "signer-3", "signer-5"), "3.4", (b"e" * 32).hex())


def test_nobody_convicts_itself_a_stranger_or_a_group(make: Make) -> None:
    convictions = make()
    for reporter in range(1, 6):
        convictions.announced(reporter, word(reporter, 9))
        convictions.announced(reporter, word(group=(2, 3, 4)))
    assert convictions.indices() == frozenset()


def test_t_liars_convict_nobody(make: Make) -> None:
    convictions = make()
    for _ in range(100):
        for liar in (4, 5):
            convictions.announced(liar, word(1, 2, 3))
    assert convictions.indices() == frozenset()


def test_a_restart_keeps_it_until_somebody_readmits(make: Make, tmp_path: Path, clock: Clock) -> None:
    convictions = make()
    for reporter in (1, 3, 5):
        convictions.announced(reporter, word(2))
    assert make().indices() == {2}
    assert readmit(tmp_path / "convicted.json", "signer-2").reason == "a wrong e_tau"
    assert read_convictions(tmp_path / "convicted.json") == {}
    assert convictions.indices() == {2}
    clock.now_s += 1.0
    assert convictions.indices() == frozenset()
    # The old words are spent: one more is not enough.
    convictions.announced(1, word(2))
    assert convictions.indices() == frozenset()
    with pytest.raises(CallerError, match="not convicted"):
        readmit(tmp_path / "convicted.json", "signer-2")


def test_words_of_several_ceremonies_do_not_add_up(make: Make) -> None:
    convictions = make()
    for number, reporter in enumerate((1, 3, 4, 5)):
        convictions.announced(reporter, word(2, context=bytes([number]) * 32))
    assert convictions.indices() == frozenset()
    convictions.announced(3, word(2, context=bytes(32)))
    convictions.announced(5, word(2, context=bytes(32)))
    assert convictions.indices() == {2}


def test_words_that_came_after_a_conviction_are_not_kept(make: Make, tmp_path: Path, clock: Clock) -> None:
    """`t` liars are no more than `t` once the signer is readmitted, whatever they call the ceremony."""
    convictions = make()
    for reporter in (1, 3, 4, 5):
        convictions.announced(reporter, word(2))
    convictions.announced(5, word(2, context=b"d" * 32))
    readmit(tmp_path / "convicted.json", "signer-2")
    clock.now_s += 1.0
    assert convictions.indices() == frozenset()
    # A word that comes late is about what has been dealt with.
    convictions.announced(1, word(2))
    for context in (b"c" * 32, b"d" * 32, b"e" * 32):
        for liar in (3, 4):
            convictions.announced(liar, word(2, context=context))
    assert convictions.indices() == frozenset()


def test_a_readmitted_signers_words_of_other_ceremonies_are_forgotten(make: Make, tmp_path: Path, clock: Clock) -> None:
    convictions = make()
    convictions.announced(1, word(2, context=b"b" * 32))
    for reporter in (1, 3, 5):
        convictions.announced(reporter, word(2))
    readmit(tmp_path / "convicted.json", "signer-2")
    clock.now_s += 1.0
    for liar in (3, 4):
        convictions.announced(liar, word(2, context=b"b" * 32))
    assert convictions.indices() == frozenset()


def test_no_liar_pushes_out_the_words_of_others(make: Make) -> None:
    convictions = make()
    convictions.announced(1, word(2))
    convictions.announced(3, word(2))
    for number in range(1000):
        convictions.announced(4, word(1, 2, 3, context=number.to_bytes(32, "big")))
    assert sum(len(words) for words in convictions._words.values()) == 2 + MAX_WORDS
    convictions.announced(5, word(2))
    assert convictions.indices() == {2}


def test_removing_the_file_readmits_everybody(make: Make, tmp_path: Path, clock: Clock) -> None:
    convictions = make()
    for reporter in (1, 3, 5):
        convictions.announced(reporter, word(2))
    (tmp_path / "convicted.json").unlink()
    clock.now_s += 1.0
    assert convictions.indices() == frozenset()


def test_a_conviction_does_not_undo_what_was_readmitted_a_moment_ago(make: Make, tmp_path: Path) -> None:
    convictions = make()
    for reporter in (1, 3, 5):
        convictions.announced(reporter, word(2))
    readmit(tmp_path / "convicted.json", "signer-2")
    for reporter in (1, 3, 5):
        convictions.announced(reporter, word(4, context=b"d" * 32))
    assert convictions.indices() == {4}
    assert list(read_convictions(tmp_path / "convicted.json")) == ["signer-4"]


def test_a_file_that_is_not_ours_is_said_so(make: Make, tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "convicted.json").write_text("[]")
    with pytest.raises(CallerError, match="remove it"):
        make()
    (tmp_path / "convicted.json").unlink()
    convictions = make()
    for reporter in (1, 3, 5):
        convictions.announced(reporter, word(2))
    (tmp_path / "convicted.json").write_text("damaged")
    clock.now_s += 1.0
    assert convictions.indices() == {2}


def test_convicted_signers_are_left_out_where_others_are_enough(make: Make, clock: Clock) -> None:
    convictions = make()
    standing = Standing(clock, convictions.indices)
    assert standing.without_avoided((1, 2, 3, 4, 5), 3) == (1, 2, 3, 4, 5)
    for reporter in (1, 3, 5):
        convictions.announced(reporter, word(2))
    clock.now_s += 100_000.0
    assert standing.avoided() == {2}
    assert standing.without_avoided((1, 2, 3, 4, 5), 4) == (1, 3, 4, 5)
    # Where there are too few without it, it takes part: it can cost batches, and no more.
    assert standing.without_avoided((1, 2, 3, 4, 5), 5) == (1, 2, 3, 4, 5)
    # One that failed comes back before the convicted one.
    standing.failed(3, "timeout")
    assert standing.without_avoided((1, 2, 3, 4, 5), 3) == (1, 4, 5)
    assert standing.without_avoided((1, 2, 3, 4, 5), 4) == (1, 3, 4, 5)


def test_a_fault_that_a_member_found_is_not_held_against_it(clock: Clock) -> None:
    standing = Standing(clock)
    standing.failed(1, "ceremony/peer")
    assert standing.avoided() == frozenset()
    standing.failed(1, "timeout")
    assert standing.avoided() == {1}


def test_a_file_that_cant_be_read_for_a_while_changes_nothing_and_is_read_once_it_can(
    make: Make, tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "convicted.json"
    convictions = make()
    for reporter in (1, 3, 5):
        convictions.announced(reporter, word(2))
    path.rename(tmp_path / "kept")
    # Also root can't read a directory as a file.
    path.mkdir()
    for _ in range(3):
        clock.now_s += 1.0
        assert convictions.indices() == {2}
    path.rmdir()
    (tmp_path / "kept").rename(path)
    readmit(path, "signer-2")
    clock.now_s += 1.0
    assert convictions.indices() == frozenset()


def test_writing_keeps_owner_and_mode_and_leaves_nothing_behind(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "convicted.json"
    convictions = make()
    for reporter in (1, 3, 5):
        convictions.announced(reporter, word(2))
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    # As an operator, root, would find a file of the coordinator's user.
    owners: list[tuple[int, int]] = []
    before = path.stat()
    monkeypatch.setattr("os.geteuid", lambda: before.st_uid + 1)
    monkeypatch.setattr("os.fchown", lambda descriptor, user, group: owners.append((user, group)))
    # What another process has under way there is not written over.
    (tmp_path / "convicted.new").write_text("another's")
    readmit(path, "signer-2")
    assert (path.stat().st_mode & 0o777, owners) == (0o640, [(before.st_uid, before.st_gid)])
    assert {each.name for each in tmp_path.iterdir()} == {"convicted.json", "convicted.new"}
    assert (tmp_path / "convicted.new").read_text() == "another's"
