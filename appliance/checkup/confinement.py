"""How running processes are confined: core dumps, memory that may reach a swap, the hardening of their units.

A process is found by what it holds: an enclave by its socket, a signer and a coordinator by the lock of their store.
"""

from __future__ import annotations

import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.checkup.checks import Looked
from appliance.checkup.findings import Finding, note, problem, warning
from appliance.checkup.machine import swaps
from appliance.checkup.probe import TIMEOUT_S

# The highest exposure that `systemd-analyze security` may find, of 10, by the kind of process.
MOST_EXPOSED = {"enclave": 1.0, "signer": 1.5, "coordinator": 1.5}
# So much of an enclave's memory must be locked where the machine swaps. The rest is code and libraries.
LEAST_LOCKED = 0.5
_UCRED = struct.Struct("3i")


@dataclass(frozen=True)
class Running:
    """A process as /proc shows it: sizes in KiB, `core_bytes` None for no limit, `unit` empty without systemd."""

    pid: int
    uid: int
    resident_kib: int
    locked_kib: int
    core_limited: bool
    unit: str


def who_listens(path: Path) -> int | None:
    """The process that listens on the Unix socket `path`; None where nobody does."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            size = _UCRED.size
            return int(_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]) or None
    except OSError:
        return None


def who_locks(path: Path, root: Path = Path("/")) -> int | None:
    """The process that holds the lock of the store at `path`; None where nobody does."""
    try:
        inode = path.with_name(path.name + ".lock").stat().st_ino
        locks = (root / "proc/locks").read_text()
    except OSError:
        return None
    found = re.search(rf"FLOCK\s+ADVISORY\s+WRITE\s+(\d+)\s+\S+:{inode}\s", locks)
    return int(found[1]) or None if found else None


def running(pid: int, root: Path = Path("/")) -> Running | None:
    """The process; None where it has gone."""
    place = root / "proc" / str(pid)
    try:
        status, limits, cgroup = ((place / name).read_text() for name in ("status", "limits", "cgroup"))
    except OSError:
        return None
    core = re.search(r"^Max core file size\s+(\S+)", limits, flags=re.MULTILINE)
    unit = re.search(r"/([^/\n]+\.service)$", cgroup, flags=re.MULTILINE)
    return Running(
        pid=pid,
        uid=_number(r"^Uid:\s+(\d+)", status),
        resident_kib=_number(r"^VmRSS:\s+(\d+)", status),
        locked_kib=_number(r"^VmLck:\s+(\d+)", status),
        core_limited=core is not None and core[1] == "0",
        unit=unit[1] if unit else "",
    )


def check_memory(name: str, process: Running, root: Path = Path("/")) -> Looked:
    """Whether secrets in an enclave's memory could reach a disk: as a core dump, or by a swap."""
    # What is locked counts pages that nothing has touched yet.
    locked_kib = min(process.locked_kib, process.resident_kib)
    return Looked(
        f"no core dumps; {locked_kib // 1024} of {process.resident_kib // 1024} MiB locked",
        list(_memory(name, process, swaps(root))),
    )


def _memory(name: str, process: Running, swapped_to: list[str]) -> Iterator[Finding]:
    if not process.core_limited:
        yield problem(
            name,
            "its enclave may leave a core dump, with every secret in it",
            "Set LimitCORE=0 in its unit (or ulimit -c 0) and restart it.",
        )
    if process.locked_kib >= LEAST_LOCKED * process.resident_kib:
        return
    if swapped_to:
        yield problem(
            name,
            f"this host swaps to {', '.join(swapped_to)}, and its enclave's memory is not locked",
            "swapoff -a, and take the swap out of /etc/fstab; or set LimitMEMLOCK=infinity in its unit.",
        )
    else:
        yield note(
            name,
            "its enclave's memory is not locked; this host has no swap",
            "Keep it so, or set LimitMEMLOCK=infinity in its unit.",
        )


def check_separation(name: str, enclave: Running, signer: Running | None, files: list[Path]) -> Looked:
    """Whether who takes over the signer's process may write what the enclave believes."""
    if signer is None:
        return Looked("no signer runs")
    if signer.uid == enclave.uid:
        found: list[Finding] = [
            note(
                name,
                "signer and enclave run as one user: who takes over the signer's process may write its policy",
                "Run them as two users, as the Debian package does (signer_uid in enclave.yaml).",
            )
        ]
        return Looked("", found)
    owned = [path.name for path in files if path.exists() and path.stat().st_uid == signer.uid]
    if owned:
        remedy = f"chown root {' '.join(owned)}, and let the group of the enclave's user read them."
        return Looked("", [problem(name, f"the signer's user owns {', '.join(owned)}", remedy)])
    return Looked("the signer's user owns none of the enclave's files")


def systemd_exposure(unit: str) -> float | None:
    """What `systemd-analyze security` says of a unit, 0 to 10; None where it cannot say."""
    tool = shutil.which("systemd-analyze")
    if tool is None or not Path("/run/systemd/system").is_dir():
        return None
    done = subprocess.run(  # noqa: S603
        [tool, "security", "--no-pager", unit], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    found = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
    return float(found[1]) if found else None


def check_hardening(
    kind: str, name: str, process: Running, exposure: Callable[[str], float | None] = systemd_exposure
) -> Looked:
    """How exposed the unit of a process is."""
    if not process.unit:
        what = f"its {kind} does not run under systemd: nothing confines it"
        return Looked("", [note(name, what, "Use the units of the Debian package.")])
    level, most = exposure(process.unit), MOST_EXPOSED[kind]
    if level is None:
        return Looked("", [note(name, f"nothing can say how exposed {process.unit} is", "See systemd-analyze.")])
    if level > most:
        found = warning(
            name,
            f"{process.unit} is exposed: {level} of 10, and the package's unit has at most {most}",
            f"systemd-analyze security {process.unit} and systemctl cat {process.unit}: a drop-in loosens it.",
        )
        return Looked("", [found])
    return Looked(f"{process.unit}: exposure {level} of 10")


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text, flags=re.MULTILINE)
    return int(found[1]) if found else 0
