"""New gate secrets are taken up while the enclave runs (SPEC 6.10): the sealed file is looked at every second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from enclave.errors import KeymootError, Unavailable
from enclave.gate_keys import GateKeys
from enclave.log import Log
from enclave.tasks import Promise

Stamp = tuple[int, int, int] | None


class GateSecretsWatch:
    """`unseal()` opens the file anew, on the HSM thread. What cannot be used changes nothing; what could not be opened
    for now is tried again."""

    def __init__(self, path: Path, unseal: Callable[[], Promise[GateKeys | None]], log: Log) -> None:
        """Make it before the file is opened for the first time, so that no change goes unseen."""
        self._path, self._unseal, self._log = path, unseal, log
        self._seen = _stamp(path)
        self._told = ""

    def look(self) -> None:
        """Take the file up where it is another one than before."""
        # SPEC 6.10
        stamp = _stamp(self._path)
        if stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        promise = self._unseal()
        promise.on_done(lambda: self._tell(promise))

    def _tell(self, promise: Promise[GateKeys | None]) -> None:
        try:
            keys = promise.result()
        except KeymootError as error:
            if isinstance(error, Unavailable):
                self._seen = None
            if (reason := str(error)[:300]) != self._told:
                self._log.error("gate secrets not reloaded", reason=reason, remedy="the old ones stay in use")
            self._told = reason
        else:
            self._told = ""
            if keys is not None:
                self._log.info("gate secrets reloaded", requests=len(keys.request), answers=len(keys.answer))


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
