"""The audit chain: every decision of this enclave, hash-chained, its head signed by the HSM identity key.

The entries live in the signer's store; the chain's head lives here, so a store that forgets or alters entries no
longer fits. Entries hold digests and public facts only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from enclave.errors import Bug
from enclave.wire import AuditEntry
from policies.transcript import Tag, digest

# What the signer may have waiting for its disk, several times over: a disk that was full loses nothing.
KEPT_FOR_RESENDING = 4096

_encoder = msgspec.json.Encoder(order="sorted")


class ChainEnd(NamedTuple):
    """An end of a chain, which is an enclave's *state* (SPEC 0.7): how many entries, and the hash of the last."""

    version: int
    head: bytes


class AuditLog:
    """Extends the chain. The signer's store says where it ended (`adopt`), once a boot.

    `at_boot` is where this boot began; `stored` is how far the chain is known to be on disk.
    """

    def __init__(self, network: str, index: int, wall_clock: Callable[[], float]) -> None:
        self._network, self._index, self._clock = network, index, wall_clock
        self.seq, self.head = 0, bytes(32)
        self.at_boot = self.stored = ChainEnd(0, bytes(32))
        self._adopted = False
        self._recent: deque[AuditEntry] = deque(maxlen=KEPT_FOR_RESENDING)
        self._signed_seq = 0

    @property
    def adopted(self) -> bool:
        """Whether the chain's end is known."""
        return self._adopted

    def adopt(self, seq: int, head: bytes) -> tuple[AuditEntry, ...]:
        """Continue a stored chain; after the first time, the entries the store has missed since."""
        if not self._adopted:
            self._adopted = True
            self.seq, self.head, self._signed_seq = seq, head, seq
            self.at_boot = self.stored = ChainEnd(seq, head)
            return ()
        return tuple(entry for entry in self._recent if entry.seq > seq)

    async def settle(self, on_disk: Callable[[], Awaitable[None]]) -> None:
        """Learn that the chain as it is now is stored: `on_disk()` returns once all that was said before it is."""
        end = ChainEnd(self.seq, self.head)
        if end.version > self.stored.version:
            await on_disk()
            self.stored = max(self.stored, end)

    def record(self, event: str, **facts: str | int | bool | list[int] | list[str]) -> AuditEntry:
        """The next entry. `facts` must be public: digests, names, ids, reasons."""
        body = _encoder.encode({"event": event, "time": int(self._clock()), **facts})
        return self._append(body, b"")

    def head_to_sign(self) -> bytes | None:
        """The digest the HSM should sign now, None if nothing was added since the last signature."""
        if self.seq == self._signed_seq:
            return None
        return digest(
            Tag.AUDIT_HEAD,
            self._network.encode(),
            self._index.to_bytes(2, "big"),
            self.seq.to_bytes(8, "big"),
            self.head,
        )

    def record_head(self, seq: int, head: bytes, signature: bytes) -> AuditEntry:
        """An entry that holds the signature over the head as it was at `seq`."""
        body = _encoder.encode({"event": "head", "time": int(self._clock()), "seq": seq, "head": head.hex()})
        entry = self._append(body, signature)
        self._signed_seq = entry.seq
        return entry

    def _append(self, body: bytes, signature: bytes) -> AuditEntry:
        if not self._adopted:
            raise Bug("an audit entry before the chain's end was known")
        seq = self.seq + 1
        entry = AuditEntry(seq, body, entry_hash(self.head, seq, body), signature)
        self.seq, self.head = seq, entry.hash
        self._recent.append(entry)
        return entry


def entry_hash(previous: bytes, seq: int, body: bytes) -> bytes:
    """The hash that entry `seq` carries: over the one before it, its number and its body."""
    return digest(Tag.AUDIT, previous, seq.to_bytes(8, "big"), body)
