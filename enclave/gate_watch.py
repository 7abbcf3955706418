"""New gate secrets are taken up while the enclave runs (SPEC 6.10): the sealed file is looked at every second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from enclave.errors import KeymootError
from enclave.gate_keys import GateKeys
from enclave.log import Log
from enclave.tasks import Promise

Stamp = tuple[int, int, int] | None


class GateSecretsWatch:
    """`unseal()` opens the file anew, on the HSM thread. What cannot be used changes nothing."""

    def __init__(self, path: Path, unseal: Callable[[], Promise[GateKeys | None]], log: Log) -> None:
        self._path, self._unseal, self._log = path, unseal, log
        self._seen = _stamp(path)

    def look(self) -> None:
        """Take the file up where it is another one than before."""
        # SPEC 6.10
        stamp = _stamp(self._path)
        if stamp in (self._seen, None):
            return
        self._seen = stamp
        promise = self._unseal()
        promise.on_done(lambda: self._tell(promise))

    def _tell(self, promise: Promise[GateKeys | None]) -> None:
        try:
            keys = promise.result()
        except KeymootError as error:
            self._log.error("gate secrets not reloaded", reason=str(error)[:300], remedy="the old ones stay in use")
        else:
            if keys is not None:
                self._log.info("gate secrets reloaded", requests=len(keys.request), answers=len(keys.answer))


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
