"""A batch under way in the presign worker, or done there and still answered for: this end carries its frames."""

from __future__ import annotations

from typing import Protocol

from enclave.ceremonies import CeremonyRun, Ticket
from enclave.errors import KeymootError, LinkFault
from enclave.pool import BYTES_PER_PRESIGNATURE, BatchKey
from enclave.protocol import presign
from enclave.protocol.blame_messages import BLAME_ROUNDS
from enclave.protocol.charges import Charge
from enclave.wire import decode
from enclave.worker import Charged

# Beside its scalars and points a frame holds commitments, references or sub-seeds; a proof holds a whole body.
FRAME_ALLOWANCE_BYTES = 192 * 1024


class WayToWorker(Protocol):
    """The way to the worker."""

    def forward(self, sid: bytes, sender: int, frame: bytes) -> None:
        """Hand a frame of a batch to the worker."""

    def give_up_batch(self, run: WorkerRun, error: KeymootError) -> None:
        """Stop a batch in the worker."""


class WorkerRun(CeremonyRun):
    """A batch under way in the worker, since `started_s` of a monotonic clock."""

    def __init__(self, batches: WayToWorker, ticket: Ticket, batch_key: BatchKey, count: int, started_s: float) -> None:
        super().__init__(ticket)
        self._batches, self.batch_key, self.started_s = batches, batch_key, started_s
        self._max_frame_bytes = count * BYTES_PER_PRESIGNATURE + FRAME_ALLOWANCE_BYTES
        self._frames = dict.fromkeys(batch_key.committee, 0)
        self._parts: list[bytes] = []
        self.charges: list[Charge] = []
        self.given_up: KeymootError | None = None
        """Why this end gave the batch up, if it did; the worker's answer is awaited."""

    def receive(self, sender: int, frame: bytes) -> None:
        # Unverified, and the worker may be busy: what can wait for it is bounded here.
        self._frames[sender] += 1
        if self._frames[sender] > len(presign.ROUNDS) + len(BLAME_ROUNDS) or len(frame) > self._max_frame_bytes:
            self.stop(LinkFault(sender, "more or larger frames than the protocol has"))
        else:
            self._batches.forward(self.ticket.context, sender, frame)

    def take_charge(self, message: Charged) -> None:
        """A part of what proves who broke the batch; the worker bounds the whole."""
        self._parts.append(message.data)
        if message.last:
            self.charges.append(decode(b"".join(self._parts), Charge))
            self._parts.clear()

    def stop(self, error: KeymootError) -> None:
        self._batches.give_up_batch(self, error)
