"""A child process that cannot be left behind: own process group, dies with its parent, logs to a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from policies.errors import Unavailable

STOP_TIMEOUT_S = 10.0
LOG_TAIL_BYTES = 4096


@dataclass
class ManagedProcess:
    """One named child. The kernel kills it when the thread that started it ends, whatever ends that thread."""

    name: str
    arguments: list[str]
    directory: Path
    log: Path
    environment: Mapping[str, str]
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it, or start it again. Its log goes on in the same file."""
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise Unavailable("the command setpriv is missing", "install Debian's util-linux")
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(  # noqa: S603
                [setpriv, "--pdeathsig", "KILL", "--", *self.arguments],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id. Raises `Unavailable` before `start`."""
        if self._child is None:
            raise Unavailable(f"{self.name} was not started", "start it first")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children; nothing where they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process alone, and wait for its end where the signal is SIGKILL."""
        child = self._child
        if child is None:
            return
        child.send_signal(number)
        if number is signal.SIGKILL:
            child.wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for whatever of its group is left after 10 s or after its end."""
        child = self._child
        if child is None:
            return
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_TIMEOUT_S)
        self.signal_group(signal.SIGKILL)
        child.wait()

    def check(self) -> None:
        """Raises `Unavailable` with the end of its log where it has ended by itself."""
        if self._child is not None and self._child.poll() is not None:
            raise Unavailable(
                f"{self.name} ended with code {self._child.returncode}: {self.last_words()}", "see the log"
            )

    def last_words(self) -> str:
        """The last line of its log."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its present descendants, from /proc. Raises `Unavailable` if gone."""
    ticks = sum(_own_ticks(one) for one in family(pid))
    return ticks / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """`pid` and all its present descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat_fields(int(entry.name))[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        queue.extend(children.get(one, ()))
    return found


def _own_ticks(pid: int) -> int:
    try:
        fields = _stat_fields(pid)
    except OSError:
        raise Unavailable(f"process {pid} has ended", "run the measurement again") from None
    return int(fields[11]) + int(fields[12])


def _stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on. The second, the command in brackets, may hold blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
