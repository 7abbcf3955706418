"""The ledger of limits: windows, holds, bounds, sealed records; the clock it counts by; what is out of the ordinary."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave.anomalies import BURST, LASTS_S, AnomalyWatch
from enclave.audit import AuditLog, ChainEnd
from enclave.counters_record import PART_BYTES, restore, snapshot
from enclave.counting_clock import Anchor, CountingClock
from enclave.errors import Bug, Refused
from enclave.ledger import MAX_COUNTERS, MAX_DESTINATIONS, MAX_FOLDED, MAX_SLOTS, SLOTS, Counter, Ledger
from enclave.log import Log
from enclave.wire import MAX_COUNTER_RECORDS, MAX_MESSAGE_BYTES, Attach, AuditEntry, Record, decode, encode
from policies.counters import MAX_COUNTS, Charge, Count
from policies.limits import Anomaly
from tests.fakes.enclaves import Clock

END = ChainEnd(7, bytes(32))


def charge_of(key: str = "x 60s", amount: int = 1, most: int | None = 3, window_s: int = 60) -> Charge:
    return Charge((Count(key, window_s, amount, most),))


def make() -> tuple[Ledger, Clock]:
    clock = Clock()
    return Ledger(CountingClock(clock, clock), clock), clock


def take(ledger: Ledger, charge: Charge, request: bytes = b"r") -> dict[str, int | list[str]]:
    ledger.seize(request, charge)
    return ledger.charge(request)


# --- windows ---


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 4000), st.lists(st.tuples(st.integers(0, 500), st.integers(1, 9)), max_size=40), st.integers(0, 9000)
)
def test_a_charge_counts_for_its_window_and_a_slot_more_at_most(
    window_s: int, charges: list[tuple[int, int]], later_s: int
) -> None:
    counter, now_s, made = Counter(window_s), 10_000, []
    for passed_s, amount in charges:
        now_s += passed_s
        counter.add(now_s, amount)
        made.append((now_s, amount))
        assert len(counter.slots) <= SLOTS + 2 or counter.used(now_s) >= 0
    now_s += later_s
    used = counter.used(now_s)
    assert used >= sum(amount for at_s, amount in made if at_s > now_s - window_s)
    assert used <= sum(amount for at_s, amount in made if at_s > now_s - window_s - counter.slot_s)
    assert len(counter.slots) <= SLOTS + 2


# --- holds ---


def test_what_is_held_counts_until_it_is_released_or_expires() -> None:
    ledger, clock = make()
    ledger.hold(b"a", charge_of(amount=2), clock.now_s + 30)
    with pytest.raises(Refused, match="other requests were quicker"):
        ledger.hold(b"b", charge_of(amount=2), clock.now_s + 30)
    ledger.hold(b"a", charge_of(amount=3), clock.now_s + 30)  # in place of its own
    assert ledger.used("x 60s") == 3
    ledger.release(b"a")
    assert ledger.used("x 60s") == 0
    ledger.hold(b"a", charge_of(amount=3), clock.now_s + 30)
    clock.now_s += 30
    ledger.hold(b"b", charge_of(amount=3), clock.now_s + 30)
    assert ledger.used("x 60s") == 3


def test_what_is_seized_stays_whatever_is_withdrawn() -> None:
    ledger, clock = make()
    ledger.hold(b"a", charge_of(amount=3), clock.now_s + 30)
    ledger.seize(b"a", charge_of(amount=3))
    ledger.release(b"a")
    clock.now_s += 31
    with pytest.raises(Refused):
        ledger.seize(b"b", charge_of())
    assert ledger.charge(b"a") == {"counted_at": int(clock.now_s), "charged": ["3 x 60s"]}
    with pytest.raises(Refused):
        ledger.seize(b"b", charge_of())


def test_what_was_not_spent_is_given_up() -> None:
    ledger, _ = make()
    ledger.seize(b"a", charge_of(amount=3))
    ledger.give_up(b"a")
    assert ledger.used("x 60s") == 0


# --- bounds ---


def test_memory_is_bounded_and_what_expired_makes_room() -> None:
    ledger, clock = make()
    for number in range(MAX_COUNTERS):
        take(ledger, charge_of(f"x 60s label={number}"))
    with pytest.raises(Refused, match="too many counters"):
        take(ledger, charge_of("x 60s label=more"))
    take(ledger, charge_of("x 60s label=0"))  # what is there counts on
    clock.now_s += 63
    take(ledger, charge_of("x 60s label=more"))
    assert len(ledger) == 1
    for number in range(MAX_DESTINATIONS + 5):
        take(ledger, Charge((), (f"1:{number}",)))
    assert len(ledger.destinations) == MAX_DESTINATIONS
    assert "1:4" not in ledger.destinations


def test_slots_are_bounded() -> None:
    ledger, clock = make()

    def fill() -> None:
        for _ in range(SLOTS):
            for number in range(MAX_SLOTS // SLOTS + 20):
                take(ledger, charge_of(f"x 3200s label={number}", most=None, window_s=3200))
            clock.now_s += 100

    with pytest.raises(Refused, match="too many counters"):
        fill()
    assert sum(len(counter.slots) for counter in ledger.counters.values()) <= MAX_SLOTS


def test_entries_of_a_store_fill_no_memory_without_end() -> None:
    """What is folded is known to be this enclave's own only at its end."""
    ledger, _ = make()
    full = MAX_FOLDED // MAX_COUNTS
    for entry in range(full):
        ledger.fold(1000, [(f"x 60s label={entry}/{number}", 60, 1) for number in range(MAX_COUNTS)], ())
    with pytest.raises(Refused, match="more counters than an enclave keeps"):
        ledger.fold(1000, [(f"x 60s label={full}/{number}", 60, 1) for number in range(MAX_COUNTS)], ())
    assert len(ledger) == full * MAX_COUNTS
    ledger.clear()
    # Those whose windows are over make room, as they did when they were charged.
    for entry in range(MAX_FOLDED // 8):
        ledger.fold(1000 + 70 * entry, [(f"x 60s label={entry}/{number}", 60, 1) for number in range(16)], ())
    assert len(ledger) <= MAX_FOLDED


# --- records ---


def test_records_bring_everything_back() -> None:
    ledger, clock = make()
    take(ledger, Charge((Count("x 60s", 60, 2**255, None), Count("y 3600s", 3600, 1, None)), ("1:0xaa",)))
    clock.now_s += 5
    take(ledger, charge_of(amount=1, most=None))
    back, _ = make()
    found = restore(back, snapshot(ledger, END))
    assert found == (END, Anchor(int(clock.now_s), int(clock.now_s)))
    assert {key: (one.last_s, list(one.slots), one.total) for key, one in back.counters.items()} == {
        key: (one.last_s, list(one.slots), one.total) for key, one in ledger.counters.items()
    }
    assert list(back.destinations) == ["1:0xaa"]


def test_the_most_there_can_be_fits_into_its_records_and_one_message() -> None:
    ledger, clock = make()
    now_s = int(clock.now_s)
    for number in range(MAX_COUNTERS):
        counter = ledger.counters[f"{number:04}".ljust(63, "n") + f" 2678400s client={'c' * 63} label={'l' * 96}"] = (
            Counter(2_678_400, now_s)
        )
        for place in (1, 0):
            counter.slots.append((now_s // counter.slot_s - place, 2**257))
            counter.total += 2**257
    for number in range(MAX_DESTINATIONS):
        ledger.destinations[f"{'9' * 78}:0x{number:040x}"] = None
    parts = snapshot(ledger, END)
    assert len(parts) <= MAX_COUNTER_RECORDS
    assert all(len(encode(part)) <= PART_BYTES + 300 for part in parts)
    records = tuple(Record("counters", f"counters-{part.part}", 7, encode(part) + bytes(300)) for part in parts)
    room = Record("prss", "prss", 1, bytes(64 * 1024))
    assert len(encode(Attach(1, "v", room, room, 7, bytes(32), records))) < MAX_MESSAGE_BYTES
    back, _ = make()
    assert restore(back, parts) is not None
    assert back.counters.keys() == ledger.counters.keys()
    # A part too few, or of another state: none of it.
    for wrong in ([], parts[:-1], parts[1:], [*snapshot(ledger, ChainEnd(8, bytes(32)))[:1], *parts[1:]]):
        empty, _ = make()
        assert restore(empty, wrong) is None
        assert len(empty) == 0


# --- the clock ---


class Machine:
    """A signer's host: its wall clock, which can be set, what has elapsed, and what its peers' clocks say."""

    def __init__(self) -> None:
        self.wall, self.elapsed, self.peers = Clock(), Clock(), Clock()
        self.elapsed.now_s = 50.0

    def passes(self, seconds: float) -> None:
        for clock in (self.wall, self.elapsed, self.peers):
            clock.now_s += seconds

    def start(self, anchor: Anchor | None = None) -> CountingClock:
        started = CountingClock(self.wall, self.elapsed)
        self.passes(3.0)  # until there are links
        started.hear(self.peers() - self.elapsed())
        started.go_on_from(anchor)
        return started


START_S = int(Clock().now_s)


def test_counted_time_follows_what_passes_and_not_what_is_set() -> None:
    machine = Machine()
    clock = machine.start()
    machine.wall.now_s += 86_400
    machine.passes(7)
    assert clock.now() == Anchor(START_S + 10, START_S + 86_410, START_S + 10)
    # The next process goes on from there: an hour later, and not a day. (Of whole seconds, one is not counted.)
    anchor = clock.now()
    machine.passes(3600)
    after = machine.start(anchor)
    assert after.now_s() == START_S + 10 + 3599 + 3
    # Set back while none ran: no time has passed.
    machine.wall.now_s -= 999_999
    last = machine.start(after.now())
    assert last.now_s() == START_S + 3612 + 3
    last.go_on_from(Anchor(0, 0, 0))  # once
    assert last.now_s() == START_S + 3615


def test_the_peers_say_how_long_a_process_was_away_where_its_clock_says_more() -> None:
    machine = Machine()
    first = machine.start()
    machine.passes(100)
    anchor = first.now()
    # Set forward while it is away; and set back before it ended, and right again.
    for wrong in (anchor, anchor._replace(wall_s=anchor.wall_s - 86_400)):
        machine.wall.now_s = machine.peers() + 86_400
        machine.passes(60)
        assert machine.start(wrong).now_s() == machine.peers()
    # A clock that says less than the peers is believed: who knows since when.
    machine.wall.now_s = anchor.wall_s + 10.0
    assert machine.start(anchor).now_s() == anchor.counted_s + 9 + 3


def test_what_was_lost_once_is_not_made_up_for_by_setting_the_clock() -> None:
    """Away for a week with the clock a week behind; charged then, and the clock set right while away once more."""
    machine, week_s = Machine(), 7 * 86_400
    anchor = machine.start().now()
    machine.passes(week_s)
    machine.wall.now_s -= week_s
    behind = machine.start(anchor)
    charged = behind.now()
    assert charged == Anchor(anchor.counted_s + 3, anchor.wall_s + 3, int(machine.peers()))
    machine.wall.now_s += week_s
    again = machine.start(charged)
    assert again.now_s() == charged.counted_s + 3
    # The next one, too, though nothing was charged since.
    assert machine.start(charged).now_s() == charged.counted_s + 6


def test_many_restarts_win_no_more_than_one() -> None:
    """The peers' time is not exact; what it was off when something was charged adds up to nothing."""
    machine = Machine()
    anchor = machine.start().now()
    for number in range(100):
        machine.wall.now_s += 3600
        machine.peers.now_s += (-25, 25)[number % 2]
        anchor = machine.start(anchor).now()
    assert anchor.counted_s - START_S <= machine.peers() - START_S + 25


def test_without_its_peers_nothing_goes_on() -> None:
    with pytest.raises(Bug, match="before its peers have said it"):
        CountingClock(Clock(), Clock()).go_on_from(None)


def test_a_chain_of_before_says_nothing_of_the_peers() -> None:
    machine = Machine()
    machine.passes(500)
    clock = machine.start(Anchor(START_S, START_S))
    assert clock.now() == Anchor(START_S + 502, START_S + 503, START_S + 503)
    assert Anchor(5, 6).facts() == {"counted_at": 5}
    assert Anchor(5, 6, 7).facts() == {"counted_at": 5, "peers_at": 7}


# --- anomalies ---


def watch() -> tuple[AnomalyWatch, Clock, list[str]]:
    clock, lines = Clock(), list[str]()
    return AnomalyWatch(clock, Log("enclave", write=lines.append)), clock, lines


def test_a_burst_of_refusals_is_told_once_and_passes() -> None:
    seen, clock, lines = watch()
    for _ in range(BURST):
        seen.on_refusal()
        clock.now_s += 4
    assert seen.observed() == frozenset()  # too slow for a burst
    for _ in range(2 * BURST):
        seen.on_refusal()
    assert seen.observed() == {Anomaly.REFUSAL_BURST}
    assert (len(lines), seen.counters) == (1, {"anomalies|refusal-burst": 1})
    clock.now_s += LASTS_S
    assert seen.observed() == frozenset()


def test_a_gate_that_becomes_slow_is_told_and_what_is_usual_is_not() -> None:
    seen, _, lines = watch()
    for _ in range(50):
        seen.on_gate(0.3)
    assert seen.observed() == frozenset()
    for _ in range(5):
        seen.on_gate(2.0)
    assert seen.observed() == {Anomaly.SLOW_GATE}
    assert len(lines) == 1
    always, _, _ = watch()
    for _ in range(50):
        always.on_gate(8.0)
    assert always.observed() == frozenset()


def test_the_longest_charge_fits_into_an_audit_entry() -> None:
    ledger, clock = make()
    log = AuditLog("n" * 63, 1, clock)
    log.adopt(0, bytes(32))
    keys = [f"{number:063} 2678400s client={'c' * 63} label={'l' * 96}" for number in range(MAX_COUNTS)]
    reached = tuple(f"{'9' * 78}:0x{number:040x}" for number in range(2))
    facts = take(ledger, Charge(tuple(Count(key, 2_678_400, 2**256 - 1, None) for key in keys), reached))
    entry = log.record("share", request="0" * 64, key_id="k" * 36, hash="0" * 64, presignature="p" * 80, **facts)
    assert decode(encode(entry), AuditEntry) == entry
