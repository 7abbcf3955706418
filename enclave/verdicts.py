"""What becomes of a verdict: an entry in the audit chain, a file of evidence, an announcement (SPEC 0.12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enclave.audit import AuditLog
from enclave.evidence import MAX_EVIDENCE_BYTES, CeremonyRecord, evidence_digest
from enclave.protocol.charges import Charge
from enclave.wire import (
    EVIDENCE_PART_BYTES,
    AuditEntry,
    CeremonyFailed,
    Convicted,
    EvidencePart,
    ReportBody,
    encode,
)

NO_EVIDENCE = bytes(32)


class Verdicts:
    """Tells the signer and the coordinator of convictions. Effects are callables."""

    def __init__(
        self,
        audit: AuditLog,
        report: Callable[[str, ReportBody, tuple[AuditEntry, ...]], None],
        emit: Callable[[EvidencePart], None],
    ) -> None:
        self._audit, self._report, self._emit = audit, report, emit
        self.counters: dict[str, int] = {}

    def tell(
        self,
        coordinator: str,
        context: bytes,
        record: CeremonyRecord,
        failure: CeremonyFailed,
        charges: Sequence[Charge],
    ) -> None:
        """A ceremony failed by somebody's fault. One announcement for each charge; one without evidence where the fault
        was proved to us alone."""
        if not failure.culprits and not failure.group:
            return
        for evidence in self._write_all(record, charges) or [NO_EVIDENCE]:
            entry = self._audit.record(
                "convicted",
                ceremony=context.hex(),
                culprits=list(failure.culprits),
                group=list(failure.group),
                step=failure.step,
                reason=failure.reason,
                evidence=evidence.hex(),
            )
            told = (failure.step, failure.reason, failure.culprits, failure.group, evidence)
            self._report(coordinator, Convicted(failure.ceremony, record.kind, context, *told), (entry,))
            name = f"convictions|{record.kind}"
            self.counters[name] = self.counters.get(name, 0) + 1

    def _write_all(self, record: CeremonyRecord, charges: Sequence[Charge]) -> list[bytes]:
        """Hand out evidence for each charge; one ceremony's, however many cheated in it, is no larger than one file may
        be. Their digests."""
        names, room_bytes = [], MAX_EVIDENCE_BYTES
        for charge in charges:
            data = encode(record.evidence(charge))
            fits = len(data) <= room_bytes
            names.append(self._write(record, data) if fits else NO_EVIDENCE)
            room_bytes -= len(data) if fits else 0
        return names

    def _write(self, record: CeremonyRecord, data: bytes) -> bytes:
        """Hand out one evidence in parts; its digest."""
        name, parts = evidence_digest(data), range(0, len(data), EVIDENCE_PART_BYTES)
        for number, start in enumerate(parts, 1):
            part = data[start : start + EVIDENCE_PART_BYTES]
            self._emit(EvidencePart(name, record.kind, number, len(parts), part))
        return name
