"""The certificates that a running process uses: warned of before they end, and taken up when they were renewed."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakSet

import structlog
from cryptography import x509

from appliance.renewal import WARN_BELOW_DAYS
from policies.errors import CallerError
from policies.repeats import Repeats

LOOK_EVERY_S = 5.0
DAY_S = 86_400.0
MAX_FILE_BYTES = 1024 * 1024
RENEW = "renew it: `keymoot pki renew`, or ask who issued it; it is taken up by itself"

log = structlog.get_logger()


class TlsFiles:
    """The TLS context that new connections use, and the files that `make` makes it of. Raises what `make` raises."""

    def __init__(
        self,
        make: Callable[[], ssl.SSLContext],
        certificate: Path | None = None,
        key: Path | None = None,
        ca: Path | None = None,
    ) -> None:
        self._make, self._paths = make, tuple(path for path in (certificate, key, ca) if path is not None)
        self.context = make()
        # Of every connection that may stay: those since an authority was withdrawn last.
        self._good = WeakSet([self.context])
        self.withdrawn = False

    def paths(self) -> tuple[Path, ...]:
        """Every file of it."""
        return self._paths

    def reload(self) -> int:
        """Use the files as they are now, from the next handshake on; how many authorities count no more.

        The context is a new one: what was loaded into one stays there, and its sessions could be resumed. Raises
        `CallerError`: nothing has changed then.
        """
        made = self._make()
        gone = set(self.context.get_ca_certs(binary_form=True)) - set(made.get_ca_certs(binary_form=True))
        if gone:
            self._good.clear()
            self.withdrawn = True
        self._good.add(made)
        self.context = made
        return len(gone)

    def outdated(self, transport: asyncio.BaseTransport | None) -> bool:
        """Whether the connection was made before an authority was withdrawn, maybe by it."""
        if not self.withdrawn:
            return False
        tls = None if transport is None else transport.get_extra_info("ssl_object")
        return tls is None or tls.context not in self._good


class CurrentContext(ssl.SSLContext):
    """For servers that are given one context for good: every connection gets the one that `files` has then."""

    files: TlsFiles

    @classmethod
    def of(cls, files: TlsFiles) -> CurrentContext:
        """By itself it has no certificate and trusts nobody."""
        made = cls(ssl.PROTOCOL_TLS_SERVER)
        made.files = files
        return made

    def wrap_bio(self, *args: Any, **named: Any) -> ssl.SSLObject:
        """As of `SSLContext`."""
        return self.files.context.wrap_bio(*args, **named)


class CertificateWatch:
    """Looks at `files` every few seconds, while `run` runs. `wall_clock`: Unix seconds."""

    def __init__(
        self,
        files: Sequence[Path],
        contexts: Sequence[TlsFiles] = (),
        wall_clock: Callable[[], float] = time.time,
        on_look: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`on_look(now_s)` is called at every look."""
        self._files, self._contexts = sorted(set(files)), tuple(contexts)
        self._clock, self._on_look = wall_clock, on_look
        self._repeats = Repeats(time.monotonic, DAY_S)
        self._seen = {id(context): _stamps(context) for context in contexts}

    async def run(self) -> NoReturn:
        """Look again and again."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Take up what was renewed, warn of what ends."""
        for context in self._contexts:
            self._reload_if_changed(context)
        now_s = self._clock()
        for path in self._files:
            if (end_s := first_end_s(path)) is not None:
                self._warn(path, end_s, now_s)
        self._on_look(now_s)

    def ends_s(self) -> dict[str, float]:
        """When the first certificate of each file ends, as Unix time, by the file's name."""
        ends = {path.name: first_end_s(path) for path in self._files}
        return {name: end_s for name, end_s in ends.items() if end_s is not None}

    def _warn(self, path: Path, end_s: float, now_s: float) -> None:
        days = int((end_s - now_s) // DAY_S)
        if days >= WARN_BELOW_DAYS:
            return
        if self._repeats.due(str(path), f"{days}") is None:
            return
        facts = {"file": str(path), "expires": iso(end_s), "days_left": days, "remedy": RENEW}
        if end_s <= now_s:
            log.error("certificate-expired", **facts)
        else:
            log.warning("certificate-expires-soon", **facts)

    def _reload_if_changed(self, files: TlsFiles) -> None:
        stamps = _stamps(files)
        if stamps == self._seen[id(files)]:
            return
        self._seen[id(files)] = stamps
        names = [str(path) for path in files.paths()]
        try:
            withdrawn = files.reload()
        except (CallerError, OSError) as error:
            log.error("certificate-not-reloaded", files=names, reason=str(error)[:512])
        else:
            log.info("certificate-reloaded", files=names, authorities_withdrawn=withdrawn)


def first_end_s(path: Path) -> float | None:
    """When the first certificate of a PEM file ends, as Unix time; None where the file cannot be read."""
    try:
        with path.open("rb") as file:
            found = x509.load_pem_x509_certificates(file.read(MAX_FILE_BYTES))
    except (OSError, ValueError):
        return None
    return min((one.not_valid_after_utc.timestamp() for one in found), default=None)


def why_unusable(path: Path, now_s: float) -> str:
    """Why a certificate of our own is not valid now; empty where it is, or cannot be read."""
    end_s = first_end_s(path)
    if end_s is None or end_s > now_s:
        return ""
    return f"our certificate {path} expired on {iso(end_s)}: {RENEW}"


def iso(unix_s: float) -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC).isoformat().replace("+00:00", "Z")


def _stamps(files: TlsFiles) -> tuple[tuple[int, int, int], ...]:
    """What changes when one of the files does."""
    stamps = []
    for path in files.paths():
        try:
            found = path.stat()
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
    return tuple(stamps)
