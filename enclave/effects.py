"""Everything the enclave asks of its signer: frames, reports, gate calls, audit entries, records to store."""

from __future__ import annotations

from collections.abc import Callable

from enclave.errors import Refused, Unavailable
from enclave.tasks import Promise
from enclave.wire import (
    MAX_AUDIT_ENTRIES,
    Attached,
    Audit,
    AuditEntry,
    FromEnclave,
    Kept,
    Record,
    Report,
    ReportBody,
    Status,
    Store,
    ToPeer,
)

MAX_OPEN_STORES = 256


class Effects:
    """Speaks to the attached signer; what is said while none is attached is dropped, and stores fail."""

    def __init__(self) -> None:
        self._sink: Callable[[FromEnclave], None] | None = None
        self._greeted = False
        self._stores: dict[int, Promise[None]] = {}
        self._next_ticket = 1

    def attach(self, sink: Callable[[FromEnclave], None]) -> None:
        """A signer is there."""
        self._sink, self._greeted = sink, False

    def detach(self) -> None:
        """The signer is gone: what it was asked to store may not be stored."""
        self._sink = None
        stores, self._stores = self._stores, {}
        for promise in stores.values():
            promise.reject(
                Unavailable("the signer process went away before it stored a record", "it restarts by itself")
            )

    def emit(self, message: FromEnclave) -> None:
        """Say something to the signer. The first thing it hears is `Attached`; what would come before is dropped."""
        if not self._greeted:
            self._greeted = isinstance(message, Attached)
            if not self._greeted and not isinstance(message, Status):
                return
        if self._sink is not None:
            self._sink(message)

    def report(
        self, coordinator: str, body: ReportBody, audit: tuple[AuditEntry, ...] = (), kept: Kept | None = None
    ) -> None:
        """A report for a coordinator; `audit` is committed before it leaves the signer, and with it what is `kept`."""
        self.emit(Report(coordinator, body, audit, kept))

    def audit(self, *entries: AuditEntry) -> None:
        """Audit entries that go with no report, in as many messages as they take."""
        for start in range(0, len(entries), MAX_AUDIT_ENTRIES):
            self.emit(Audit(entries[start : start + MAX_AUDIT_ENTRIES]))

    def to_peer(self, coordinator: str, receiver: int, bulk: bool, data: bytes) -> None:
        """A frame for another enclave."""
        self.emit(ToPeer(coordinator, receiver, bulk, data))

    async def store(self, records: tuple[Record, ...]) -> None:
        """Returns once the signer says that the records are on disk. Raises `Unavailable`."""
        if self._sink is None:
            raise Unavailable("no signer process is attached", "start it: `keymoot signer run`")
        if len(self._stores) >= MAX_OPEN_STORES:
            raise Refused("busy", f"{MAX_OPEN_STORES} records wait to be stored")
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        promise: Promise[None] = Promise()
        self._stores[ticket] = promise
        self.emit(Store(ticket, records))
        await promise

    def on_stored(self, ticket: int) -> None:
        """The records of `ticket` are on disk."""
        promise = self._stores.pop(ticket, None)
        if promise is not None:
            promise.resolve(None)
