"""The sealed records of the counters: what is in them, and how they are cut into records of a size that can be sealed.

SPEC 7.5. Nothing in them is secret; the seal says that this enclave made them, and for which end of its audit chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec

from enclave.audit import ChainEnd
from enclave.counting_clock import Anchor
from enclave.errors import Refused
from enclave.ledger import MAX_COUNTERS, MAX_DESTINATIONS, SLOTS, Counter, Ledger
from enclave.wire import MAX_COUNTER_RECORDS, Bytes32, Count, ShortText, Wire, encode

PART_BYTES = 56 * 1024
# Of 256 bits each, up to 2^16 of them in one slot.
Amount = Annotated[bytes, msgspec.Meta(min_length=1, max_length=48)]


class KeptCounter(Wire, frozen=True):
    """A counter: its key, window and last time in seconds, and its slots with their amounts (big-endian)."""

    key: ShortText
    window_s: Annotated[int, msgspec.Meta(ge=1, le=2**32)]
    last_s: Count
    slots: Annotated[tuple[tuple[Count, Amount], ...], msgspec.Meta(max_length=SLOTS + 2)]


class CountersRecord(Wire, frozen=True):
    """The plaintext of a sealed record: part `part` of `parts` of all counters as they were at an end of the chain,
    with the counted time, the wall clock and the peers' time then (SPEC 7.2)."""

    seq: Count
    head: Bytes32
    counted_s: Count
    wall_s: Count
    peers_s: Count | None
    part: Annotated[int, msgspec.Meta(ge=0, lt=MAX_COUNTER_RECORDS)]
    parts: Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNTER_RECORDS)]
    counters: Annotated[tuple[KeptCounter, ...], msgspec.Meta(max_length=MAX_COUNTERS)]
    destinations: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=MAX_DESTINATIONS)]


def snapshot(ledger: Ledger, end: ChainEnd) -> list[CountersRecord]:
    """All that `ledger` has counted up to `end`. Raises `Refused` where that is too much, which its bounds prevent."""
    groups = list(_groups([*_counters(ledger), *ledger.destinations]))
    now = ledger.clock.now()
    if len(groups) > MAX_COUNTER_RECORDS:
        raise Refused("busy", "the counters do not fit into their records")
    return [
        CountersRecord(
            *end,
            now.counted_s,
            now.wall_s,
            now.peers_s,
            part,
            len(groups),
            tuple(item for item in group if isinstance(item, KeptCounter)),
            tuple(item for item in group if isinstance(item, str)),
        )
        for part, group in enumerate(groups)
    ]


def restore(ledger: Ledger, records: Sequence[CountersRecord]) -> tuple[ChainEnd, Anchor] | None:
    """Put into an empty `ledger` what the parts hold; the end of the chain that they are of, and their time. None, and
    nothing is done, unless they are all parts of one whole."""
    first = records[0] if records else None
    if first is None or len(records) < first.parts:
        return None
    whole = records[: first.parts]
    if any((one.seq, one.head, one.parts, one.part) != (first.seq, first.head, first.parts, place)
           for place, one in enumerate(whole)):  # fmt: skip
        return None
    for record in whole:
        for kept in record.counters:
            slots = ((slot, int.from_bytes(amount, "big")) for slot, amount in kept.slots)
            ledger.counters[kept.key] = Counter(kept.window_s, kept.last_s, slots)
        ledger.destinations.update(dict.fromkeys(record.destinations))
    ledger.recount()
    return ChainEnd(first.seq, first.head), Anchor(first.counted_s, first.wall_s, first.peers_s)


def _counters(ledger: Ledger) -> Iterator[KeptCounter]:
    ledger.sweep(ledger.clock.now_s())
    for key, counter in ledger.counters.items():
        slots = tuple(
            (slot, amount.to_bytes(max(1, -(-amount.bit_length() // 8)), "big")) for slot, amount in counter.slots
        )
        yield KeptCounter(key, counter.window_s, counter.last_s, slots)


def _groups(items: Sequence[KeptCounter | str]) -> Iterator[list[KeptCounter | str]]:
    group: list[KeptCounter | str] = []
    size = 0
    for item in items:
        length = len(encode(item)) if isinstance(item, KeptCounter) else len(item.encode()) + 3
        if size + length > PART_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += length
    yield group
