"""Looks for secrets in whatever was written or printed: raw, and in each way in which bytes become text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LEAST_SECRET_BYTES = 16


@dataclass(frozen=True)
class KnownSecret:
    """A secret and the one file that may hold it, if any."""

    name: str
    value: bytes = field(repr=False)
    home: Path | None = None

    def __post_init__(self) -> None:
        # A shorter one, or one of zeros, would be found by chance.
        assert len(self.value) >= LEAST_SECRET_BYTES, self.name
        assert any(self.value), self.name


@dataclass(frozen=True)
class Leak:
    """Where a secret was found."""

    secret: str
    encoding: str
    place: str


def forms(secret: bytes) -> dict[str, tuple[bytes, ...]]:
    """What to look for, by encoding. Base64 has three forms: within longer data, the text depends on the offset."""
    # Which quotes are escaped depends on those in the rest.
    plain = repr(secret)[2:-1]
    standard = tuple(_within(base64.b64encode(bytes(lead) + secret), lead, len(secret)) for lead in range(3))
    return {
        "raw": (secret,),
        "hex": (secret.hex().encode(), secret.hex().upper().encode()),
        "base64": standard,
        "base64url": tuple(text.translate(bytes.maketrans(b"+/", b"-_")) for text in standard),
        "decimal": (str(int.from_bytes(secret, "big")).encode(), str(int.from_bytes(secret, "little")).encode()),
        "repr": (plain.replace("\\'", "'").encode(), plain.replace("\\'", "'").replace("'", "\\'").encode()),
    }


def leaks(secrets: Sequence[KnownSecret], material: Iterable[tuple[str | Path, bytes]]) -> list[Leak]:
    """Every secret found in `material` (place and content), other than in its home."""
    wanted = [(secret, forms(secret.value)) for secret in secrets]
    found = []
    for place, data in material:
        # PEM and some dumps break their lines; JSON writes a line's end as two characters.
        joined = data.replace(b"\\n", b"").translate(None, b"\r\n \t")
        for secret, encodings in wanted:
            if place == secret.home:
                continue
            for encoding, texts in encodings.items():
                if any(text in data or text in joined for text in texts):
                    found.append(Leak(secret.name, encoding, str(place)))
    return found


def files(root: Path) -> list[tuple[str | Path, bytes]]:
    """Path and content of every regular file under `root`, a store's `-wal` and `-shm` included."""
    return [(path, path.read_bytes()) for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]


def of_process(pid: int) -> list[tuple[str | Path, bytes]]:
    """What every user of the machine (the arguments) or the same user (the environment) can read of a process."""
    return [(path, path.read_bytes()) for path in (Path(f"/proc/{pid}/{name}") for name in ("cmdline", "environ"))]


def _within(text: bytes, lead: int, size: int) -> bytes:
    """The characters of base64 `text` that `size` bytes after `lead` bytes determine by themselves."""
    first = -(-lead * 8 // 6)
    end = (lead + size) * 8 // 6
    return text[first:end]
