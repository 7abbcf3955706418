"""Files of evidence that the enclave hands out (SPEC 0.12): kept beside the signer's store, in bounded number."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from enclave import wire

MAX_FILES = 32
SUFFIX = ".evidence"
UNFINISHED = f"{SUFFIX}.new"

log = structlog.get_logger()


class EvidenceFiles:
    """Takes parts in order, writes whole files. Beyond `MAX_FILES` the oldest goes."""

    def __init__(self, directory: Path, wall_clock: Callable[[], float] = time.time) -> None:
        self._directory, self._clock = directory, wall_clock
        self._name = b""
        self._parts: list[bytes] = []
        # One file at a time: each counts those that are there.
        self._writing = threading.Lock()
        self._swept = False

    def take(self, part: wire.EvidencePart) -> bytes | None:
        """The whole file, once its last part is here. Raises `Malformed` for parts out of order."""
        if part.number == 1:
            self._name, self._parts = part.evidence, []
        if part.evidence != self._name or part.number != len(self._parts) + 1:
            self._name, self._parts = b"", []
            raise wire.Malformed("parts of evidence out of order")
        self._parts.append(part.data)
        if part.number < part.count:
            return None
        whole, self._name, self._parts = b"".join(self._parts), b"", []
        return whole

    async def keep(self, part: wire.EvidencePart, data: bytes) -> None:
        """Write one file. A disk that does not take it costs the file, and is logged: nothing else waits for it."""
        name = f"{int(self._clock())}-{part.kind}-{part.evidence.hex()[:32]}{SUFFIX}"
        try:
            await asyncio.to_thread(self._write, name, data)
        except OSError as error:
            log.error("evidence-not-kept", file=name, reason=str(error)[:300])
        else:
            log.warning("evidence-kept", file=str(self._directory / name))

    def _write(self, name: str, data: bytes) -> None:
        with self._writing:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep()
            kept = sorted(self._directory.glob(f"*{SUFFIX}"), key=lambda path: (path.stat().st_mtime_ns, path.name))
            for path in kept[: max(0, len(kept) - MAX_FILES + 1)]:
                path.unlink()
            temporary = self._directory / f"{name.removesuffix(SUFFIX)}{UNFINISHED}"
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self._directory / name)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    def _sweep(self) -> None:
        """What an earlier process has not finished, once."""
        if not self._swept:
            for path in self._directory.glob(f"*{UNFINISHED}"):
                path.unlink()
            self._swept = True
