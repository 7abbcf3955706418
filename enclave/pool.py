"""The pool of presignatures: in this enclave's memory alone, each taken at most once.

`take` empties the slot before it returns what was in it (SPEC 4.3). There is no way to put one back, to look at one
without taking it, or to save the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from enclave.crypto.curve import AFFINE_POINT_BYTES, SCALAR_BYTES
from enclave.errors import Refused
from enclave.protocol.sign import Presignature
from enclave.wire import MAX_PRESIGNATURES, BatchState, PresignatureName

MAX_BATCHES = 256
BYTES_PER_PRESIGNATURE = SCALAR_BYTES + AFFINE_POINT_BYTES


class UnknownPresignatureError(Refused):
    """The pool does not hold the named presignature (any more)."""

    def __init__(self) -> None:
        super().__init__("presignature", "this enclave does not hold the named presignature")


@dataclass(frozen=True)
class BatchKey:
    """What a batch belongs to: the coordinator that ordered it, its committee and epoch, and its members' boots."""

    coordinator: str
    committee: tuple[int, ...]
    prss_epoch: int
    boots: Mapping[int, bytes]


class _Batch:
    def __init__(self, key: BatchKey, inverse_shares: bytes, points: bytes) -> None:
        self.key = key
        self.inverse_shares = bytearray(inverse_shares)
        self.points = points
        self.count = len(points) // AFFINE_POINT_BYTES
        self.left = self.count
        self.remaining = bytearray(b"\xff" * (self.count // 8))
        if self.count % 8:
            self.remaining.append((1 << self.count % 8) - 1)

    def holds(self, l: int) -> bool:
        return 1 <= l <= self.count and bool(self.remaining[(l - 1) // 8] >> (l - 1) % 8 & 1)

    def take(self, l: int) -> Presignature:
        place = (l - 1) * SCALAR_BYTES
        share = int.from_bytes(self.inverse_shares[place : place + SCALAR_BYTES], "big")
        self.inverse_shares[place : place + SCALAR_BYTES] = bytes(SCALAR_BYTES)
        self.remaining[(l - 1) // 8] &= 0xFF ^ (1 << (l - 1) % 8)
        self.left -= 1
        point = self.points[(l - 1) * AFFINE_POINT_BYTES : l * AFFINE_POINT_BYTES]
        return Presignature(share, point)

    def wipe(self) -> None:
        self.inverse_shares[:] = bytes(len(self.inverse_shares))


class PresignaturePool:
    """All batches of this boot. No `sid` comes twice: it holds a spent nonce of ours (SPEC 3.1)."""

    def __init__(self) -> None:
        self._batches: dict[bytes, _Batch] = {}

    def __len__(self) -> int:
        return sum(batch.left for batch in self._batches.values())

    def check_room(self, count: int) -> None:
        """Raises `Refused` where `count` more would exceed the pool's bounds."""
        if len(self) + count > MAX_PRESIGNATURES or len(self._batches) >= MAX_BATCHES:
            raise Refused("pool", f"the pool is full ({len(self)} of {MAX_PRESIGNATURES})")

    def held_for(self, coordinator: str) -> int:
        """How many presignatures are here that `coordinator` ordered."""
        return sum(batch.left for batch in self._batches.values() if batch.key.coordinator == coordinator)

    def insert(self, sid: bytes, key: BatchKey, inverse_shares: bytes, points: bytes) -> None:
        """Take in a batch confirmed by its committee. Raises `Refused` for a `sid` that is here, or without room."""
        if sid in self._batches:
            raise Refused("presign", "this sid is in the pool")
        self.check_room(len(points) // AFFINE_POINT_BYTES)
        self._batches[sid] = _Batch(key, inverse_shares, points)

    def holds(self, name: PresignatureName, committee: tuple[int, ...], prss_epoch: int) -> bool:
        """Whether the named presignature is here, for this committee and epoch. Reserves nothing."""
        batch = self._batches.get(name.sid)
        return (
            batch is not None
            and batch.key.committee == committee
            and batch.key.prss_epoch == prss_epoch
            and batch.holds(name.index)
        )

    def take(self, name: PresignatureName, committee: tuple[int, ...], prss_epoch: int) -> Presignature:
        """SPEC 4.3: the presignature, gone from the pool. Raises `UnknownPresignatureError`."""
        return self.take_all((name,), committee, prss_epoch)[0]

    def take_all(
        self, names: Sequence[PresignatureName], committee: tuple[int, ...], prss_epoch: int
    ) -> list[Presignature]:
        """SPEC 4.8: all of them, gone from the pool. Raises `UnknownPresignatureError` where one is not here, or is
        named twice, and takes none then."""
        if len(set(names)) != len(names):
            raise UnknownPresignatureError
        for name in names:
            if not self.holds(name, committee, prss_epoch):
                raise UnknownPresignatureError
        return [self._take(name) for name in names]

    def _take(self, name: PresignatureName) -> Presignature:
        batch = self._batches[name.sid]
        taken = batch.take(name.index)
        if not batch.left:
            del self._batches[name.sid]
        return taken

    def drop(self, condition: Callable[[bytes, BatchKey], bool]) -> int:
        """Destroy every batch for which `condition(sid, key)` holds; how many presignatures that cost."""
        lost = 0
        for sid in [sid for sid, batch in self._batches.items() if condition(sid, batch.key)]:
            batch = self._batches.pop(sid)
            lost += batch.left
            batch.wipe()
        return lost

    def states(self, coordinator: str) -> Iterator[BatchState]:
        """What is left of each batch that `coordinator` ordered."""
        for sid, batch in self._batches.items():
            if batch.key.coordinator == coordinator:
                yield BatchState(sid, batch.key.committee, batch.count, bytes(batch.remaining))
