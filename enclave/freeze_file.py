"""The file in which an enclave keeps what it is frozen for, in a directory of its own."""

from __future__ import annotations

from pathlib import Path

from enclave.errors import CallerError
from enclave.files import replace_file

MAX_FILE_BYTES = 64 * 1024


class FreezeFile:
    """A file in the enclave's state directory: root or the enclave's user writes it, nobody else may."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes | None:
        """See `FreezeStore`."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CallerError(f"{self._path} cannot be read: {error.strerror}") from None
        if len(data) > MAX_FILE_BYTES:
            raise CallerError(f"{self._path} is larger than {MAX_FILE_BYTES} bytes")
        return data

    def write(self, data: bytes) -> None:
        """See `FreezeStore`."""
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            replace_file(self._path, data, 0o600)
        except OSError as error:
            raise CallerError(f"{self._path} cannot be written: {error.strerror}") from None
