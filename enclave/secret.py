"""Secrets in memory: redacted, not copied, not compared, wiped on exit of their scope."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn


class Secret:
    """A mutable byte string that never shows itself. Use it as a context manager, or call `wipe`.

    Python may have copied the bytes before they came here; THREATS.md says what that leaves.
    """

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes | bytearray) -> None:
        self._bytes = value if isinstance(value, bytearray) else bytearray(value)

    def __len__(self) -> int:
        return len(self._bytes)

    def reveal(self) -> bytes:
        """The secret's bytes, as a copy the caller keeps no longer than it must."""
        return bytes(self._bytes)

    def wipe(self) -> None:
        """Overwrite with zeros and empty it."""
        self._bytes[:] = bytes(len(self._bytes))
        del self._bytes[:]

    def __enter__(self) -> Secret:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        raise TypeError("secrets are not compared")

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")

    def __copy__(self) -> NoReturn:
        raise TypeError("secrets are not copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("secrets are not copied")
