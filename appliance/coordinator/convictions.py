"""Signers that were convicted of breaking a protocol: left out of committees where enough others are there, until an
operator readmits them (`keymoot coordinator readmit`).

One enclave's word is no proof here. A signer counts as convicted when `t + 1` others have announced it of one ceremony:
at least one of them follows the protocol, and such a one announces nothing that its evidence does not prove (SPEC
0.11).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from enclave import wire
from policies.errors import CallerError, Unavailable
from policies.repeats import Repeats
from policies.roster import Roster

FILE = "convicted.json"
REREAD_S = 1.0
MAX_WORDS = 64
MAX_FILE_BYTES = 64 * 1024
NOBODY: frozenset[int] = frozenset()

log = structlog.get_logger()


class Conviction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a signer was convicted of, by whom (names), and the digest that names their evidence (hex)."""

    at_s: int
    ceremony: str
    step: str
    reason: str
    by: tuple[str, ...]
    evidence: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    convicted: dict[str, Conviction]


class Convictions:
    """The convicted signers by name; kept in a file, or in memory alone where `path` is None. `clock`: monotonic."""

    def __init__(
        self,
        roster: Roster,
        path: Path | None,
        changed: Callable[[], None],
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `CallerError` for a file that is not one of ours."""
        self._roster, self._path, self._changed = roster, path, changed
        self._wall_clock, self._clock = wall_clock, clock
        # By reporter, so that none can push out another's: evidence by culprit and ceremony, newest last.
        self._words: dict[int, dict[tuple[int, bytes], str]] = {}
        self._spent: dict[str, bytes] = {}
        self._indices: dict[str, int] = {signer.name: signer.index for signer in roster.signers}
        self._seen: tuple[int, int] | None = None
        self._looked_s = clock()
        self._repeats = Repeats(clock)
        self._convicted: dict[str, Conviction] = {}
        if path is not None:
            self._seen, self._convicted = _stamp(path), read_convictions(path)

    def indices(self) -> frozenset[int]:
        """Who is left out now."""
        self._reread()
        if not self._convicted:
            return NOBODY
        return frozenset(self._indices[name] for name in self._convicted if name in self._indices)

    def of(self, name: str) -> Conviction | None:
        """What a signer was convicted of."""
        self._reread()
        return self._convicted.get(name)

    def announced(self, reporter: int, report: wire.Convicted) -> None:
        """The enclave of `reporter` says that it has convicted somebody."""
        self._reread()
        for culprit in report.culprits:
            if culprit == reporter or culprit not in self._roster.indices:
                continue
            name = self._roster.signer(culprit).name
            if name in self._convicted or self._spent.get(name) == report.context:
                continue
            words = self._words.setdefault(reporter, {})
            words[culprit, report.context] = report.evidence.hex()
            if len(words) > MAX_WORDS:
                del words[next(iter(words))]
            said = {j: each[place] for j, each in self._words.items() if (place := (culprit, report.context)) in each}
            if len(said) > self._roster.tolerate:
                self._convict(name, said, report)

    def _forget(self, name: str) -> None:
        """No word about a signer counts any more."""
        for words in self._words.values():
            for place in [place for place in words if place[0] == self._indices.get(name)]:
                del words[place]

    def _convict(self, name: str, said: dict[int, str], report: wire.Convicted) -> None:
        by = tuple(self._roster.signer(index).name for index in sorted(said))
        evidence = next((word for _, word in sorted(said.items()) if word.strip("0")), "")
        found = Conviction(int(self._wall_clock()), report.kind, report.step, report.reason, by, evidence)
        # The words are spent, and so is the ceremony: once it is readmitted, it takes as many again, of another one.
        self._forget(name)
        self._spent[name] = report.context
        # An operator may have readmitted another a moment ago.
        self._reread(at_once=True)
        self._convicted = {**self._convicted, name: found}
        log.error("signer-convicted", convicted=name, by=by, reason=report.reason, evidence=evidence)
        if self._path is not None:
            try:
                write_convictions(self._path, self._convicted)
                self._seen = _stamp(self._path)
            except OSError as error:
                # It holds in memory; the next one is written with it.
                log.error("convictions-not-kept", file=str(self._path), reason=str(error)[:300])
        self._changed()

    def _reread(self, at_once: bool = False) -> None:
        """Take up what an operator has changed in the file; one that was removed readmits everybody."""
        if self._path is None or (not at_once and self._clock() - self._looked_s < REREAD_S):
            return
        self._looked_s = self._clock()
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        try:
            now = read_convictions(self._path)
        except (CallerError, Unavailable) as error:
            # What is known stays. One that is not ours is read again once it has changed, another as soon as it can be.
            if isinstance(error, CallerError):
                self._seen = stamp
            if (passed_over := self._repeats.due("file", str(error))) is not None:
                log.error("convictions-unreadable", reason=str(error), not_told=passed_over)
            return
        self._repeats.over("file")
        self._seen = stamp
        for name in self._convicted.keys() - now.keys():
            self._forget(name)
            log.warning("signer-readmitted", readmitted=name)
        self._convicted = now
        self._changed()


def read_convictions(path: Path) -> dict[str, Conviction]:
    """The file's convictions by name, none where there is no file. Raises `CallerError`, `Unavailable`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}", "see that the coordinator's user can read it") from None
    try:
        return msgspec.json.decode(data, type=_File).convicted
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(f"{path}: {error}; remove it to readmit everybody") from None


def write_convictions(path: Path, convicted: dict[str, Conviction]) -> None:
    """Replace the file; owner and mode stay. Raises `OSError`."""
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    # A name of its own: the coordinator and an operator's command may write at once.
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".new", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(_File(1, convicted))))
            if before is not None:
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), before.st_mode & 0o777)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def readmit(path: Path, name: str) -> Conviction:
    """Take a signer out of the file, and return what it had been convicted of. Raises `CallerError`, `Unavailable`."""
    convicted = read_convictions(path)
    if name not in convicted:
        raise CallerError(f"{name} is not convicted: `keymoot status` shows who is")
    found = convicted.pop(name)
    try:
        write_convictions(path, convicted)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}", "run this as the coordinator's user") from None
    return found


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
